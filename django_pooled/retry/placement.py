"""Where a call of a coroutine function has its transaction: in a thread of its own, as a rule."""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import Future, wait
from contextlib import suppress
from enum import Enum
from functools import partial
from threading import current_thread
from typing import TYPE_CHECKING, Any, NamedTuple

from asgiref.sync import sync_to_async
from django.db import connections
from psycopg.pq import TransactionStatus

from django_pooled.backend.thread_wrappers import wrappers_of
from django_pooled.backend.wrapper import DatabaseWrapper
from django_pooled.integrations import tenants
from django_pooled.pool.connection import PooledConnection

from .asgiref_private import usual_executor, usual_thread
from .awaited_checkouts import note_pool, wait_in_line
from .coroutines import ThreadedCall
from .own_threads import THREADS

if TYPE_CHECKING:
    from collections.abc import Callable

    from django.db.backends.base.base import BaseDatabaseWrapper

    from django_pooled.backend.transaction_mode import TransactionMode
    from django_pooled.pool.pool import Pool
    from django_pooled.pool.waiter import Waiter

__all__ = ["Place", "Placement", "call_in_thread", "placement_of"]


class Place(Enum):
    """Where a call is made, with respect to the thread that asgiref would run its queries in."""

    OWN_THREAD = "own thread"
    """In a thread, and with connections, that no other task uses."""
    USUAL_THREAD = "usual thread"
    """In that thread: there is a transaction in it, or session state to rely on."""
    SAME_TRANSACTION = "same transaction"
    """Within the transaction of a decorated call, which that thread is making."""


class Placement(NamedTuple):
    """Where a call is made."""

    place: Place
    tenants_from: tuple[DatabaseWrapper, ...] = ()
    """The wrappers of the usual thread that choose a tenant."""


_OWN_THREAD = Placement(Place.OWN_THREAD)


async def placement_of(alias: str) -> Placement:
    """Return where a call on a database is to be made.

    Connections that the usual thread only keeps go back first: if requests kept one and waited
    for another, as many as there are connections would wait for each other.

    Args:
        alias: Key of the database.
    """
    await _release_kept_by_caller()
    thread = usual_thread()
    if thread is not None and any(map(_holds_something, wrappers_of(thread))):
        return await sync_to_async(_settle)(alias)
    return _OWN_THREAD


async def call_in_thread(
    function: Callable[[], Any], alias: str, name: str, placement: Placement
) -> Any:
    """Call a function in a thread, in which coroutine functions can be called by a bridge.

    Args:
        function: What to call.
        alias: Key of the database of its transaction.
        name: Of the function, for messages and statistics.
        placement: Which thread.
    """
    if placement.place is not Place.OWN_THREAD:
        return await ThreadedCall(function, alias, name).run(usual_executor().submit)
    queued = await wait_in_line(alias, _have_kept_ones_released)
    called = partial(_with_own_connections, function, alias, queued, placement.tenants_from)
    call = ThreadedCall(called, alias, name, _have_kept_ones_released)
    return await call.run(partial(_start, queued))


def _start(queued: tuple[Pool, Waiter] | None, job: Callable[[], object]) -> None:
    try:
        THREADS.run(job)
    except BaseException:
        if queued is not None:
            queued[0].leave(queued[1])
        raise


def _holds_something(wrapper: TransactionMode) -> bool:
    """Tell whether the thread of a wrapper, which is another one, has to be asked."""
    connection = wrapper.connection
    return (
        wrapper.in_atomic_block
        or tenants.has_tenants(wrapper)
        or (
            connection is not None
            # It is at work for others, and what it holds is theirs.
            and _status_of(connection) != TransactionStatus.ACTIVE
        )
    )


def _status_of(connection: Any) -> int | None:
    if isinstance(connection, PooledConnection):
        return connection.look(lambda pgconn: pgconn.transaction_status)
    return int(connection.info.transaction_status)


def _settle(alias: str) -> Placement:
    """In the usual thread: return the place, and give connections back if nothing needs them."""
    wrapper = connections[alias]
    if isinstance(wrapper, DatabaseWrapper) and wrapper.attempt is not None:
        return Placement(Place.SAME_TRANSACTION)
    # Also on other databases: the call may query those as well, and takes part there.
    if any(map(_is_to_rely_on, connections.all(initialized_only=True))):
        return Placement(Place.USUAL_THREAD)
    _release_kept()
    return Placement(Place.OWN_THREAD, tuple(filter(tenants.has_tenants, _own_wrappers())))


def _is_to_rely_on(wrapper: BaseDatabaseWrapper) -> bool:
    """Tell whether there is a transaction, or state of a session, that code relies on."""
    connection = wrapper.connection
    if wrapper.in_atomic_block:
        return True
    if not isinstance(wrapper, DatabaseWrapper) or connection is None:
        return False
    has_state = (
        isinstance(connection, PooledConnection)
        and connection.pinned_by is not None
        # The search_path of a tenant is set up on each connection.
        and not (tenants.has_tenants(wrapper) and connection.relied_on is None)
    )
    return has_state or not wrapper.autocommit


def _have_kept_ones_released() -> None:
    """Have the usual thread release what it keeps, as a call begins to wait for a connection.

    Other tasks may query in that thread before the call has its connection, and in session mode
    the thread keeps theirs. Those that begin to later are behind the call in the queue.
    """
    thread = usual_thread()
    if thread is not None and wrappers_of(thread):
        # At the end of the loop, or of the request, that thread takes nothing more.
        with suppress(RuntimeError):
            usual_executor().submit(_release_kept)


async def _release_kept_by_caller() -> None:
    """Release what synchronous code keeps that has queried, and then called ``asyncio.run()``.

    It waits for this event loop, in the same thread, and so for the call.
    """
    kept = [
        wrapper
        for wrapper in wrappers_of(current_thread())
        if wrapper.checked_out_from is not None and not _is_to_rely_on(wrapper)
    ]
    if os.environ.get("DJANGO_ALLOW_ASYNC_UNSAFE"):
        # Other tasks may use them at any moment, in this thread.
        while kept:
            kept.pop().release()
    if not kept:
        return
    released: Future[None] = Future()

    def release() -> None:
        if released.set_running_or_notify_cancel():
            try:
                for wrapper in kept:
                    wrapper.release_elsewhere()
                released.set_result(None)
            except BaseException as error:
                released.set_exception(error)

    THREADS.run(release)
    try:
        # Cancelled with it, if it has not begun.
        await asyncio.wrap_future(released)
    finally:
        # If this task is cancelled, the caller may go on with its connection at once.
        wait([released])


def _release_kept() -> None:
    for wrapper in _own_wrappers():
        if wrapper.checked_out_from is not None and not _is_to_rely_on(wrapper):
            wrapper.release()


def _own_wrappers() -> list[DatabaseWrapper]:
    found = connections.all(initialized_only=True)
    return [wrapper for wrapper in found if isinstance(wrapper, DatabaseWrapper)]


def _with_own_connections(
    function: Callable[[], Any],
    alias: str,
    queued: tuple[Pool, Waiter] | None,
    tenants_from: tuple[DatabaseWrapper, ...],
) -> Any:
    """Call *function* with connections that go back as at the end of a request.

    Args:
        function: What to call.
        alias: Key of the database of its transaction.
        queued: The wait for its first connection, if that has begun.
        tenants_from: As in `Placement`.
    """
    own = connections[alias]
    if isinstance(own, DatabaseWrapper):
        own.queued = queued
    for outside in tenants_from:
        tenants.follow(outside, connections[outside.alias])
    try:
        return function()
    finally:
        if isinstance(own, DatabaseWrapper):
            note_pool(alias, own.last_pool)
            if own.queued is not None:
                # It has needed none.
                (pool, waiter), own.queued = own.queued, None
                pool.leave(waiter)
        for wrapper in connections.all(initialized_only=True):
            wrapper.close_if_unusable_or_obsolete()
            if tenants.has_tenants(wrapper):
                # The next call in this thread may be another tenant's.
                del connections[wrapper.alias]
