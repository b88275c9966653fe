"""Pools that are watched: their number, what they have open, and whether their sums are exact."""

from __future__ import annotations

import os
import threading
import weakref
from functools import partial
from typing import TYPE_CHECKING, Any

from django_pooled.pool import pool as pool_module
from django_pooled.pool.connection import PooledConnection
from django_pooled.pool.pool import Pool
from django_pooled.signals import connection_checked_out

if TYPE_CHECKING:
    from django_pooled.stats.snapshot import PoolSnapshot

__all__ = ["WatchedPool", "complaints_about", "complaints_at_rest", "watch"]


class WatchedPool(Pool):
    """A pool that counts its sessions by itself: from the end of each connect to each close."""

    lock = threading.RLock()
    """Guards all below; reentrant, since a finalizer may run under it."""
    made: list[WatchedPool] = []
    checkouts = 0
    """Those of all pools, as the signal tells of them."""
    owners: dict[int, WatchedPool] = {}
    """By the ``id()`` of libpq's connection, which is another's only after its finalizer."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.sessions = 0
        self.most_sessions = 0
        opener, open_one = self._pool._opener, self._pool._opener.open
        opener.open = partial(self._counted, open_one)  # type: ignore[method-assign]
        with WatchedPool.lock:
            WatchedPool.made.append(self)

    def _counted(self, open_one: Any, *args: Any) -> PooledConnection:
        connection: PooledConnection = open_one(*args)
        key = id(connection.pgconn)
        with WatchedPool.lock:
            WatchedPool.owners[key] = self
            self.sessions += 1
            self.most_sessions = max(self.most_sessions, self.sessions)
        # One that is freed was closed by that.
        weakref.finalize(connection.pgconn, _ended, key).atexit = False  # type: ignore[misc]
        return connection


def _ended(key: int) -> None:
    with WatchedPool.lock:
        pool = WatchedPool.owners.pop(key, None)
        if pool is not None:
            pool.sessions -= 1


def watch() -> None:
    """Have all pools of this process watched from now on."""
    close = PooledConnection.close

    def close_counted(connection: PooledConnection) -> None:
        if not connection.closed or connection.session.slot is not None:
            _ended(id(connection.pgconn))
        close(connection)

    PooledConnection.close = close_counted  # type: ignore[method-assign,assignment]
    pool_module.Pool = WatchedPool  # type: ignore[misc]
    connection_checked_out.connect(_checked_out, weak=False)
    os.register_at_fork(after_in_child=_forget)


def _checked_out(**_: object) -> None:
    with WatchedPool.lock:
        WatchedPool.checkouts += 1


def _forget() -> None:
    # Another thread of the parent may have held it.
    WatchedPool.lock = threading.RLock()
    WatchedPool.made, WatchedPool.owners = [], {}


def complaints_about(pool: PoolSnapshot, *, have_limits: bool) -> list[tuple[str, str]]:
    """Say what cannot be true of a pool at any moment, and what was seen.

    Args:
        pool: The pool.
        have_limits: Whether waiters may be of lanes that have as many connections as they may.
    """
    counters = pool.counters
    wrong = {
        "more connections than max_size": pool.size > pool.max_size,
        "size is not idle + in use": pool.size != pool.idle + pool.in_use,
        "a thread waits beside an idle connection": bool(pool.idle and pool.waiting)
        and not have_limits,
        "checkouts are not checkins + discarded + in use": counters.checkouts
        != counters.checkins + counters.discarded + pool.in_use,
        "not each end has its duration": counters.use.count
        != counters.checkins + counters.discarded,
    }
    seen = (
        f"{pool.alias}: size {pool.size} of {pool.max_size}, idle {pool.idle}, in use "
        f"{pool.in_use}, waiting {pool.waiting}, {counters.checkouts} checkouts, "
        f"{counters.checkins} checkins, {counters.discarded} discarded"
    )
    return [(what, seen) for what, is_so in wrong.items() if is_so]


def complaints_at_rest(pool: WatchedPool) -> list[tuple[str, str]]:
    """Say what cannot be true of a pool that was closed, once nothing is in use any more."""
    seen = pool.snapshot()
    counters = seen.counters
    closed = sum(counters.closed.values())
    wrong = {
        "sessions that stay open": pool.sessions != 0,
        "more sessions than max_size": pool.most_sessions > seen.max_size,
        "connections that a closed pool has": seen.size != 0,
        "not each connect has its close": counters.connects != closed,
        "not each checkout has its end": counters.checkouts
        != counters.checkins + counters.discarded,
    }
    figures = (
        f"{seen.alias}: {pool.sessions} sessions, {pool.most_sessions} at most, size {seen.size}, "
        f"{counters.connects} connects, {closed} closed, {counters.checkouts} checkouts, "
        f"{counters.checkins} checkins, {counters.discarded} discarded"
    )
    return [(what, figures) for what, is_so in wrong.items() if is_so]
