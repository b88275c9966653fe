"""The thread that the transaction of a coroutine belongs to, and code in other threads."""

from __future__ import annotations

import asyncio
import logging
from contextvars import ContextVar
from functools import partial, wraps
from threading import current_thread
from typing import TYPE_CHECKING

from asgiref.sync import async_to_sync, iscoroutinefunction

from django_pooled.diagnostics.call_site import caller
from django_pooled.diagnostics.log_fields import event_fields

from .thread_wrappers import wrappers_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Executor

__all__ = [
    "TransactionThread",
    "as_callback",
    "current",
    "serving_transaction_of",
    "tell_if_elsewhere",
]

logger = logging.getLogger("django_pooled.retry")

_MOST_TOLD = 1000
"""Places that are remembered, so that those of code made at run time do not pile up."""


class TransactionThread:
    """The thread in which everything is run that takes part in one transaction.

    Args:
        alias: Of the database.
        name: Of the coroutine function, for messages.
        outer: That of the call around this one.
    """

    __slots__ = ("alias", "name", "outer", "serving", "thread")

    def __init__(self, alias: str, name: str, outer: TransactionThread | None) -> None:
        self.alias = alias
        self.name = name
        self.outer = outer
        self.thread = current_thread()
        self.serving: Executor | None = None
        """What runs code in it; None while no coroutine runs, as after COMMIT."""


current: ContextVar[TransactionThread | None] = ContextVar(
    "django_pooled.transaction_thread", default=None
)
"""That of the running code, also in threads to which its context was copied."""

_told: set[tuple[str, str]] = set()


def tell_if_elsewhere(present: TransactionThread, alias: str) -> None:
    """Log, once for each place, that a query is no part of the transaction it seems to be in.

    It is run in another thread than the transaction, though by the same code: that is what
    ``asyncio.to_thread()`` and ``sync_to_async(thread_sensitive=False)`` do.

    Args:
        present: The thread of the transaction around the running code.
        alias: Of the database that the query is for.
    """
    call: TransactionThread | None = present
    while call is not None and (call.alias != alias or call.serving is None):
        call = call.outer
    if call is None or call.thread is current_thread():
        return
    place = str(caller())
    if (alias, place) in _told or len(_told) >= _MOST_TOLD:
        return
    _told.add((alias, place))
    logger.warning(
        "database %r: %s queries in another thread than %s, and takes no part in its transaction: "
        "call it by sync_to_async(), without thread_sensitive=False",
        alias,
        place,
        call.name,
        extra=event_fields("queried_elsewhere", alias=alias, where=place, function=call.name),
    )


def serving_transaction_of(alias: str) -> Executor | None:
    """Return what runs code in the thread in which the running coroutine has a transaction.

    None if it has none on this database, or if no coroutine runs here.

    Args:
        alias: Of the database.
    """
    call = current.get()
    while call is not None and call.serving is None:
        call = call.outer
    if call is None or not _runs_coroutine():
        return None
    wrappers = wrappers_of(call.thread, alias)
    return call.serving if any(each.in_atomic_block for each in wrappers) else None


def as_callback(function: Callable[[], object]) -> Callable[[], object]:
    """Return what calls a coroutine function as a callback after COMMIT, which Django awaits not.

    The event loop of the call runs it.
    """
    if current.get() is None or not iscoroutinefunction(function):
        return function
    # Without its attributes, one of which may be the mark of a coroutine function.
    return wraps(function, updated=())(partial(async_to_sync(function)))


def _runs_coroutine() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
