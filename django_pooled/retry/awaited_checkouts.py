"""Waits for a connection in an event loop: a call needs no thread before there is one."""

from __future__ import annotations

import asyncio
from contextlib import nullcontext, suppress
from time import monotonic
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from django_pooled.pool import deadline as deadlines
from django_pooled.pool.queue import CLIENT_INTERVAL, PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable

    from django_pooled.pool.deadline import Deadline
    from django_pooled.pool.pool import Pool
    from django_pooled.pool.waiter import Waiter

__all__ = ["note_pool", "wait_in_line"]

_pools: WeakValueDictionary[str, Pool] = WeakValueDictionary()
"""Those that calls have used last, by alias."""


def note_pool(alias: str, pool: Pool | None) -> None:
    """Take note of the pool that a call has used, for those after it."""
    if pool is not None and _pools.get(alias) is not pool:
        _pools[alias] = pool


async def wait_in_line(
    alias: str, when_waiting: Callable[[], object]
) -> tuple[Pool, Waiter] | None:
    """Wait in the pool's queue, as a thread does, in the same order and with the same limits.

    Args:
        alias: Key of the database.
        when_waiting: Called once there is a place in the queue.

    Returns:
        What a thread has to go on with, which gets its connection or its error there; None if one
        need not wait, or if no call has used the database yet.
    """
    pool = _pools.get(alias)
    if pool is None:
        return None
    loop = asyncio.get_running_loop()
    served: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        # Nobody waits in an event loop that is closed.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(_resolve, served)

    waiter = pool.enqueue(wake)
    if waiter is None:
        return None
    limit = deadlines.current.get()
    try:
        when_waiting()
        with nullcontext() if limit is None else limit.waking(wake):
            await _served_or_late(served, pool, waiter, limit)
    except BaseException:
        pool.leave(waiter)
        raise
    return pool, waiter


async def _served_or_late(
    served: asyncio.Future[None], pool: Pool, waiter: Waiter, limit: Deadline | None
) -> None:
    """Wait until the waiter is served, or a thread has to take the last look, or to be refused."""
    interval = PATIENCE if limit is None or limit.is_gone is None else CLIENT_INTERVAL
    last_look_at = waiter.deadline - min(PATIENCE, (waiter.deadline - waiter.since) / 4)
    look_at = waiter.since + PATIENCE
    while not served.done():
        now = monotonic()
        until = last_look_at if limit is None else min(last_look_at, limit.until)
        if now >= until or pool.is_overdue(waiter):
            return
        if now >= look_at:
            pool.look_for_lost_soon()
            look_at = now + PATIENCE
        wakes_at = min(until, pool.next_look(waiter))
        await asyncio.wait([served], timeout=max(0.0, min(interval, wakes_at - now)))
        if limit is not None:
            limit.end_if_gone()


def _resolve(served: asyncio.Future[None]) -> None:
    if not served.done():
        served.set_result(None)
