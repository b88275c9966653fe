"""Events of a pool's connections: each is counted and sent as a signal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django_pooled.signals import (
    checkout_failed,
    connection_checked_in,
    connection_checked_out,
    connection_discarded,
    connection_opened,
)

if TYPE_CHECKING:
    from django.dispatch import Signal

    from django_pooled.errors import PoolError
    from django_pooled.stats.counters import Reason, Record

__all__ = ["Events"]


class Events:
    """Counts and sends the events of one pool; checkouts and checkins are counted by `Checkouts`.

    Args:
        record: Where connects and closes are counted.
        sender: The signals' sender: the class of the pool.
        alias: The pool's alias.
        name: The pool's name.
    """

    def __init__(self, record: Record, sender: type, alias: str, name: str) -> None:
        self._record = record
        self._sender = sender
        self._alias = alias
        self._name = name

    def opened(self, seconds: float) -> None:
        """A connection was opened, in that many seconds; it is counted once it is kept."""
        if connection_opened.receivers:
            self._send(connection_opened, seconds=seconds)

    def closed(self, reason: Reason) -> None:
        """A connection was closed."""
        self._record.add("closed", reason)
        if connection_discarded.receivers:
            self._send(connection_discarded, reason=reason)

    def checked_out(self, waited: float) -> None:
        """A thread was given a connection, after that many seconds."""
        self._send(connection_checked_out, waited=waited)

    def failed(self, error: PoolError) -> PoolError:
        """A thread was given no connection; return the error that is to be raised."""
        if checkout_failed.receivers:
            self._send(checkout_failed, waited=error.elapsed, error=error)
        return error

    def checked_in(self, used: float, kept: bool) -> None:
        """A connection came back after that many seconds, and was kept or not."""
        self._send(connection_checked_in, used=used, kept=kept)

    def _send(self, signal: Signal, **facts: object) -> None:
        signal.send_robust(sender=self._sender, using=self._alias, pool_name=self._name, **facts)
