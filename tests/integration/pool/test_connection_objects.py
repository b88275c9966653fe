"""Which object serves the next checkout of a session: the same, or one that was made for it."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Any
from weakref import ref

import psycopg
import pytest
from django.db import connections
from django.db.transaction import atomic
from psycopg.rows import dict_row

from django_pooled.pool.connection import PooledConnection
from tests.support.references import needs_counts

if TYPE_CHECKING:
    from collections.abc import Callable

    from django_pooled.backend.wrapper import DatabaseWrapper
    from embedded_postgres import EmbeddedServer
    from tests.support.pools import MakeDatabase, MakePool


@pytest.fixture
def wrapper(server: EmbeddedServer, make_database: MakeDatabase) -> DatabaseWrapper:
    made: Any = connections[make_database(server, max_size=1)]
    ask(made)
    made.close()
    return made  # type: ignore[no-any-return]


def ask(wrapper: DatabaseWrapper) -> int:
    """Query, and return which connection object served."""
    with wrapper.cursor() as cursor:
        cursor.execute("SELECT 40 + 2")
        assert cursor.fetchone() == (42,)
    return id(wrapper.connection)


@needs_counts
def test_an_object_that_nothing_refers_to_serves_again(wrapper: DatabaseWrapper) -> None:
    served = set()
    for _ in range(5):
        served.add(ask(wrapper))
        wrapper.close()
    assert len(served) == 1


def hold_cursor(wrapper: DatabaseWrapper) -> object:
    return wrapper.connection.cursor()


def hold_connection(wrapper: DatabaseWrapper) -> object:
    return wrapper.connection


def hold_closed_cursor_of_psycopg(wrapper: DatabaseWrapper) -> object:
    cursor = psycopg.Cursor(wrapper.connection)
    cursor.close()
    return cursor


@pytest.mark.parametrize("hold", [hold_cursor, hold_connection, hold_closed_cursor_of_psycopg])
def test_what_is_held_beyond_a_checkout_cannot_reach_the_next_one(
    wrapper: DatabaseWrapper, hold: Callable[[DatabaseWrapper], Any]
) -> None:
    ask(wrapper)
    held = hold(wrapper)
    wrapper.close()
    ask(wrapper)
    given = getattr(held, "connection", held)
    assert given is not wrapper.connection
    with pytest.raises(psycopg.OperationalError, match="the connection is closed"):
        given.execute("SELECT 1")
    wrapper.close()


@needs_counts
def test_a_closed_cursor_that_is_held_keeps_no_object_from_serving_again(
    wrapper: DatabaseWrapper,
) -> None:
    ask(wrapper)
    first = id(wrapper.connection)
    with wrapper.cursor() as cursor:
        cursor.execute("SELECT 1")
    wrapper.close()
    ask(wrapper)
    assert id(wrapper.connection) == first
    assert cursor.connection is not wrapper.connection
    wrapper.close()


def test_a_named_cursor_of_a_transaction_keeps_no_object_once_it_is_closed(
    wrapper: DatabaseWrapper,
) -> None:
    gc.disable()  # which would free what refers to itself
    try:
        with atomic(using=wrapper.alias), wrapper.chunked_cursor() as cursor:
            cursor.execute("SELECT generate_series(1, 9)")
            assert cursor.fetchmany(2) == [(1,), (2,)]
            named = ref(cursor.cursor)
        del cursor
        wrapper.close()
        assert named() is None
    finally:
        gc.enable()


def test_what_was_set_on_an_object_goes_with_it(wrapper: DatabaseWrapper) -> None:
    ask(wrapper)
    wrapper.connection.row_factory = dict_row
    wrapper.connection.tenant = "acme"
    wrapper.close()
    ask(wrapper)
    assert not hasattr(wrapper.connection, "tenant")
    assert wrapper.connection.execute("SELECT 1").fetchone() == (1,)
    wrapper.close()


@needs_counts
def test_an_object_that_serves_again_has_the_state_of_a_new_one(wrapper: DatabaseWrapper) -> None:
    ask(wrapper)
    first = id(wrapper.connection)
    with wrapper.cursor() as cursor:
        cursor.execute("CREATE TEMPORARY TABLE IF NOT EXISTS served (n int) ON COMMIT DROP")
        cursor.execute("VACUUM pg_catalog.pg_class")
    wrapper.connection.statements, wrapper.connection.time_limits = 3, {"lock_timeout": 1.0}
    wrapper.connection.pinned_by = None
    wrapper.close()
    ask(wrapper)
    served = wrapper.connection
    assert id(served) == first
    new = served.renewed()
    try:
        # Those of the present checkout are left out.
        of_one = {"_given_back", "as_made", "carries", "fresh_until", "in_use", "owner", "uses"}
        for name in set(PooledConnection.__slots__) - of_one:
            assert getattr(served, name) == getattr(new, name), name
    finally:
        new.session.doom("the test has parted it from its pool")
        wrapper.close()
        new.close()


def test_state_of_a_session_is_seen_though_the_object_would_serve_again(
    server: EmbeddedServer, make_pool: MakePool
) -> None:
    pool = make_pool(server, max_size=1, reset="auto")
    for _ in range(3):
        holder = [pool.checkout()]
        holder[0].execute("SET search_path = elsewhere")
        pool.checkin_from(holder)
        holder = [pool.checkout()]
        assert holder[0].pinned_by is None
        assert holder[0].execute("SHOW search_path").fetchone() != ("elsewhere",)
        pool.checkin_from(holder)
