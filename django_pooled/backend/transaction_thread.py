"""The thread that the transaction of a coroutine belongs to, and queries in other threads."""

from __future__ import annotations

import logging
from contextvars import ContextVar
from threading import get_ident

from django_pooled.diagnostics.call_site import caller
from django_pooled.diagnostics.log_fields import event_fields

__all__ = ["TransactionThread", "current", "tell_if_elsewhere"]

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

    __slots__ = ("alias", "ident", "is_over", "name", "outer")

    def __init__(self, alias: str, name: str, outer: TransactionThread | None) -> None:
        self.alias = alias
        self.name = name
        self.outer = outer
        self.ident = get_ident()
        self.is_over = False


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
    while call is not None and (call.alias != alias or call.is_over):
        call = call.outer
    if call is None or call.ident == get_ident():
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
