"""Whether this process reports its pools, and by which socket."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from typing import TYPE_CHECKING

from django_pooled.diagnostics.log_fields import event_fields
from django_pooled.diagnostics.redaction import told

if TYPE_CHECKING:
    from collections.abc import Callable

    from .answering_socket import AnsweringSocket, Obey
    from .orders import Order
    from .snapshot import PoolSnapshot, ProcessReport
    from .socket_folder import StrPath

__all__ = ["after_fork_in_child", "standing_pause_of", "start", "stop"]

logger = logging.getLogger("django_pooled.publish")

# Reentrant: a signal handler that queries may interrupt the thread that holds it.
_lock = threading.RLock()
_started_by: int | None = None
"""The process that called start(), whether or not it could publish anything; guarded by the lock,
as what follows."""
_publisher: AnsweringSocket | None = None


def start(
    folder: StrPath | None,
    report: Callable[[], ProcessReport],
    site: str = "",
    look: Callable[[float], list[PoolSnapshot]] | None = None,
    look_at_servers: Callable[[], object] = lambda: None,
    obey: Obey | None = None,
) -> None:
    """Answer questions about this process's pools from now on, and obey orders.

    Only the first call in a process does anything. Where a socket can't be had, a debug line
    says why and the process goes on without: statistics never cost a request.

    Args:
        folder: The ``stats_dir`` option, or None for the default folder.
        report: Called in a thread of its own for each reader.
        site: Key of the site that the process belongs to.
        look: Called for the history, see `History`; None for none.
        look_at_servers: Called in a thread of its own, once a reader wants sessions.
        obey: Called for each order; None refuses all.
    """
    global _started_by, _publisher
    with _lock:
        if _started_by == os.getpid():
            return
        # A fork that ran no Python hook got here with the parent's socket still open.
        _forget()
        _started_by = os.getpid()
        try:
            # Not above: only a process with a pool has something to report.
            from .answering_socket import AnsweringSocket

            _publisher = AnsweringSocket(folder, report, site, look, look_at_servers, obey)
            # RuntimeError: no thread can be started, or not any more at exit.
        except (OSError, RuntimeError) as error:
            logger.debug(
                "cannot publish the pool statistics of this process: %s",
                told(error),
                extra=event_fields("not_published", error=error),
            )


def stop() -> None:
    """Take the socket away; a later start() opens another."""
    global _started_by, _publisher
    with _lock:
        if _publisher is not None and _started_by == os.getpid():
            _publisher.close()
            _publisher = None
        _started_by = None


def standing_pause_of(site: str) -> tuple[Order, str] | None:
    """Return the pause of a site that began before this process, and who has ordered it."""
    with _lock:
        publisher = _publisher if _started_by == os.getpid() else None
    return None if publisher is None else publisher.standing_pause(site)


def after_fork_in_child() -> None:
    """Let go of the parent's socket, which stays the parent's: its name is not removed."""
    global _lock
    # A thread of the parent may have held it at the fork, and cannot release it here.
    _lock = threading.RLock()
    _forget()


def _forget() -> None:
    global _started_by, _publisher
    if _publisher is not None:
        # The copy of a listening socket keeps connections coming, which are not answered
        # once the parent is dead.
        with contextlib.suppress(OSError):
            _publisher.listener.close()
    _publisher = None
    _started_by = None
