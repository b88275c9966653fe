"""Where a call of a coroutine function has its transaction: in a thread of its own, as a rule."""

from __future__ import annotations

from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from asgiref.sync import sync_to_async
from django.db import connections
from psycopg.pq import TransactionStatus

from django_pooled.backend.thread_wrappers import wrappers_of
from django_pooled.backend.wrapper import DatabaseWrapper
from django_pooled.integrations import tenants
from django_pooled.pool.connection import PooledConnection

from .asgiref_private import usual_executor, usual_thread
from .coroutines import ThreadedCall
from .own_threads import THREADS

if TYPE_CHECKING:
    from collections.abc import Callable

    from django_pooled.backend.transaction_mode import TransactionMode

__all__ = ["Place", "Placement", "call_in_thread", "placement_of"]


class Place(Enum):
    """Where a call is made, with respect to the thread that asgiref would run its queries in."""

    OWN_THREAD = "own thread"
    """In a thread, and with a connection, that no other task uses."""
    USUAL_THREAD = "usual thread"
    """In that thread: its transaction is a TestCase's, or its session has state to rely on."""
    SAME_TRANSACTION = "same transaction"
    """Within the transaction of a decorated call, which that thread is making."""


class Placement(NamedTuple):
    """Where a call is made."""

    place: Place
    outside: DatabaseWrapper | None = None
    """The wrapper of the usual thread, if a tenant is chosen by it."""


_OWN_THREAD = Placement(Place.OWN_THREAD)


async def placement_of(alias: str) -> Placement:
    """Return where a call on a database is to be made.

    A connection that the usual thread only keeps goes back first: if requests kept one and waited
    for another, as many as there are connections would wait for each other.

    Args:
        alias: Key of the database.
    """
    thread = usual_thread()
    if thread is not None and any(map(_holds_something, wrappers_of(thread, alias))):
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
    called = partial(_with_own_connections, function, alias, placement.outside)
    return await ThreadedCall(called, alias, name).run(THREADS.run)


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
    """In the usual thread: return the place, and give the connection back if nothing needs it."""
    wrapper = connections[alias]
    if not isinstance(wrapper, DatabaseWrapper):
        return _OWN_THREAD
    if wrapper.in_atomic_block:
        joins = wrapper.attempt is not None
        return Placement(Place.SAME_TRANSACTION if joins else Place.USUAL_THREAD)
    has_tenants, connection = tenants.has_tenants(wrapper), wrapper.connection
    if connection is not None:
        has_state = (
            isinstance(connection, PooledConnection)
            and connection.pinned_by is not None
            # The search_path of a tenant is set up on each connection.
            and not (has_tenants and connection.relied_on is None)
        )
        if has_state or not wrapper.autocommit:
            return Placement(Place.USUAL_THREAD)
        wrapper.release()
    return Placement(Place.OWN_THREAD, wrapper) if has_tenants else _OWN_THREAD


def _with_own_connections(
    function: Callable[[], Any], alias: str, outside: DatabaseWrapper | None
) -> Any:
    """Call *function* with connections that go back as at the end of a request."""
    if outside is not None:
        tenants.follow(outside, connections[alias])
    try:
        return function()
    finally:
        for wrapper in connections.all(initialized_only=True):
            wrapper.close_if_unusable_or_obsolete()
            if tenants.has_tenants(wrapper):
                # The next call in this thread may be another tenant's.
                del connections[wrapper.alias]
