"""Signals, for metrics and logs of a project's own."""

from __future__ import annotations

import os
import threading

from django.dispatch import Signal

__all__ = [
    "attempt_ended",
    "attempt_started",
    "checkout_failed",
    "connection_checked_in",
    "connection_checked_out",
    "connection_discarded",
    "connection_opened",
    "transaction_restarting",
]

connection_checked_out: Signal = Signal()
"""Sent when a thread has been given a connection, in that thread.

Arguments of this and the four that follow: ``sender`` (the class of the pool), ``using`` (alias)
and ``pool_name`` (the option ``name``, or the alias). Here also ``waited``: seconds that the
checkout took. Receivers must be quick, must not use the database and must not keep anything of
the caller's; what they raise is logged.
"""

checkout_failed: Signal = Signal()
"""Sent when a thread was given no connection, in that thread, before the error is raised.

Also ``waited``: seconds until then, and ``error``: a ``CheckoutTimeout``, ``PoolExhausted`` or
``ConnectFailed``.
"""

connection_checked_in: Signal = Signal()
"""Sent when a connection has come back, in the thread that gave it.

Also ``used`` (seconds that it was in use) and ``kept`` (False if it was closed instead).
"""

connection_opened: Signal = Signal()
"""Sent when a connection has been opened and configured, in a thread of the pool.

Also ``seconds``: how long that took.
"""

connection_discarded: Signal = Signal()
"""Sent when a pool has closed a connection, in whatever thread that was.

Also ``reason``: 'idle' for ``max_idle``; older than its 'lifetime'; found 'dead' at a check; an
'error' while in use; a failed 'reset'; or 'drained', after a failover or with the pool. A receiver
must not wait for the pool: its lock may be held.
"""

attempt_started: Signal = Signal()
"""Sent by ``retry_transaction`` before each attempt, in its thread.

Arguments: ``sender`` (the function), ``using`` (alias) and ``attempt`` (number, from 1). Receivers
run outside the transaction; what they raise is logged.
"""

attempt_ended: Signal = Signal()
"""Sent by ``retry_transaction`` after each attempt, once it is known what follows.

Also ``pool_name`` (None if it got no connection), ``outcome``, ``sqlstate`` of its failure and
``error``, None where there was none. The outcome is 'committed', 'rolled back' as the function
wished, 'restarted', 'failed', or 'unknown' for an ``AmbiguousCommit``.
"""

transaction_restarting: Signal = Signal()
"""Sent by ``retry_transaction`` before it waits and runs a transaction again.

Arguments: ``sender`` (the function), ``using`` (alias), ``attempt`` (number of the one that
failed, from 1), ``sqlstate`` (of its failure, None where there was none), ``wait`` (seconds) and
``error``. Receivers run outside the transaction; what they raise is logged.
"""


def _after_fork_in_child() -> None:
    # Each send takes its lock, which another thread of the parent may have held.
    for name in __all__:
        signal: Signal = globals()[name]
        signal.lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
