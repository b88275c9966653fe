"""The exceptions that django_pooled raises, all of them ``django.db.OperationalError``.

Where psycopg_pool has a name for the same thing, they are that too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import psycopg
import psycopg_pool
from django.db import OperationalError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "AmbiguousCommit",
    "CheckoutTimeout",
    "ConnectFailed",
    "DeadlineExceeded",
    "Gauges",
    "PoolClosed",
    "PoolError",
    "PoolExhausted",
]


@dataclass(frozen=True)
class Gauges:
    """How full a pool was at one moment; ``size`` is always ``idle + in_use``.

    Attributes:
        size: Connections that are open.
        idle: Of those, the ones ready for a checkout.
        in_use: Of those, the ones checked out.
        waiting: Threads queued for a checkout.
        max_size: Most connections that the pool opens.
    """

    size: int
    idle: int
    in_use: int
    waiting: int
    max_size: int

    def __str__(self) -> str:
        return (
            f"size {self.size} of {self.max_size}, {self.idle} idle, "
            f"{self.in_use} in use, {self.waiting} waiting"
        )


class PoolError(OperationalError):
    """A connection could not be checked out of a pool.

    No statement was sent, so nothing of the caller's work happened. A pool error says
    that the pool is saturated or its server away: repeating the work at once makes
    either worse, which is why ``retry_transaction`` never repeats it.

    Attributes:
        alias: Key of the database in ``settings.DATABASES``.
        elapsed: Seconds from the start of the checkout to the error.
        gauges: The pool's size, idle, in use and waiting when it was raised.
        holders: The views, tasks or functions that had the connections, as in the message; None
            where that was not the reason.
    """

    holders: str | None = None

    def __init__(self, message: str, *, alias: str, elapsed: float, gauges: Gauges) -> None:
        super().__init__(message)
        self.alias = alias
        self.elapsed = elapsed
        self.gauges = gauges

    def __reduce__(self) -> tuple[Callable[..., PoolError], tuple[object, ...], dict[str, object]]:
        made = type(self), self.args[0], self.alias, self.elapsed, self.gauges
        return _rebuild, made, {"holders": self.holders}


class CheckoutTimeout(PoolError, psycopg_pool.PoolTimeout):
    """No connection became available in time; ``__cause__`` is the last connect error, if any."""


class ConnectFailed(PoolError):
    """The server refused the connection for a reason that waiting does not mend.

    A wrong password, an unknown role or database, a missing ``pg_hba.conf`` entry:
    ``__cause__`` is psycopg's error, with the server's own words.
    """


class PoolExhausted(PoolError, psycopg_pool.TooManyRequests):
    """Too many threads were queued for a connection, or all of them waited too long.

    Attributes:
        limit: The option of the pool that says so: "max_waiting" or "queue_target".
    """

    limit: str = "max_waiting"

    def __reduce__(self) -> tuple[Callable[..., PoolError], tuple[object, ...], dict[str, object]]:
        make, made, state = super().__reduce__()
        return make, made, {**state, "limit": self.limit}


class PoolClosed(PoolError, psycopg_pool.PoolClosed):
    """The pool was closed, because the process is ending or its settings changed."""


class AmbiguousCommit(OperationalError):
    """The connection was lost while COMMIT was under way, and its outcome can't be known.

    The transaction is either committed as a whole or not at all. Nothing was repeated:
    the caller has to find out, or tell the user so. ``__cause__`` is the connection's error.

    Attributes:
        alias: Key of the database in ``settings.DATABASES``; None where that is not known.
        repeatable: Whether the client may send the request again, which it has given a key for
            that (see ``idempotency_key``).
    """

    repeatable = False

    def __init__(self, *args: object, alias: str | None = None) -> None:
        super().__init__(*args)
        self.alias = alias


class DeadlineExceeded(OperationalError, psycopg.errors.QueryCanceled):
    """The deadline of `django_pooled.deadline` has ended: a statement was cancelled, or not sent.

    So is one that was cancelled by ``close_all(cancel=True)``, as its process ends.

    What it would have done is not done; in a transaction, nothing of the transaction is. What was
    written before it in autocommit stays. ``__cause__`` is the server's error, if there was one.
    It is never retried.
    """


def _rebuild(
    kind: type[PoolError], message: str, alias: str, elapsed: float, gauges: Gauges
) -> PoolError:
    return kind(message, alias=alias, elapsed=elapsed, gauges=gauges)
