"""The short way to a connection leaves a wrapper as Django's own connect() does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import pytest
from django.db import close_old_connections, connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.signals import connection_created
from psycopg import IsolationLevel

from django_pooled import base, registry
from django_pooled.backend import quick
from django_pooled.base import DatabaseWrapper

if TYPE_CHECKING:
    from collections.abc import Iterator

    from django_pooled.pool.pool import Pool
    from embedded_postgres import EmbeddedServer
    from tests.support.pools import MakeDatabase

LEFT_OVER: dict[str, Any] = {
    "in_atomic_block": True,
    "needs_rollback": True,
    "closed_in_transaction": True,
    "errors_occurred": True,
    "savepoint_ids": ["s1"],
    "atomic_blocks": ["a block"],
    "run_on_commit": ["a callback"],
    "autocommit": False,
}
"""What a transaction that came to no end leaves on a wrapper."""

TIMES = (
    "closings",
    "close_at",
)


@pytest.fixture
def wrapper(server: EmbeddedServer, make_database: MakeDatabase) -> Iterator[DatabaseWrapper]:
    """One that has been connected before."""
    made = connections[make_database(server)]
    assert isinstance(made, DatabaseWrapper)
    made.connect()
    made.close()
    yield made
    made.close()


def ways(wrapper: DatabaseWrapper) -> list[str]:
    """Connect, and tell by which way."""
    taken: list[str] = []

    def find_pool(self: DatabaseWrapper, params: dict[str, Any]) -> Pool:
        taken.append("long")
        return own(self, params)

    own = DatabaseWrapper._find_pool
    with patch.object(DatabaseWrapper, "_find_pool", find_pool):
        wrapper.ensure_connection()
    return taken[:1] or ["short"]


def state(wrapper: DatabaseWrapper) -> dict[str, Any]:
    """Return everything on a wrapper, but for what differs from one connection to the next."""
    own = {key: value for key, value in vars(wrapper).items() if key not in ("connection", *TIMES)}
    return {key: value for key, value in own.items() if not key.startswith("_thread_sharing")}


def test_the_short_way_leaves_what_the_long_one_leaves(wrapper: DatabaseWrapper) -> None:
    seen = []
    for way in ("short", "long"):
        vars(wrapper).update(LEFT_OVER)
        if way == "long":
            BaseDatabaseWrapper.connect(wrapper)
        else:
            wrapper.connect()
        assert wrapper.connection is not None
        seen.append(state(wrapper))
        wrapper.close()
    assert seen[0] == seen[1]
    assert all(seen[0][key] != value for key, value in LEFT_OVER.items())


def test_the_first_connection_comes_the_long_way_and_the_next_the_short_one(
    server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    wrapper = connections[make_database(server)]
    assert isinstance(wrapper, DatabaseWrapper)
    assert ways(wrapper) == ["long"]
    close_old_connections()
    assert wrapper.connection is None
    assert ways(wrapper) == ["short"]


def test_on_the_short_way_the_signal_of_a_new_connection_is_sent(wrapper: DatabaseWrapper) -> None:
    heard: list[Any] = []

    def receive(connection: Any, **facts: Any) -> None:
        heard.append((connection, connection.connection is not None))

    connection_created.connect(receive)
    try:
        assert ways(wrapper) == ["short"]
    finally:
        connection_created.disconnect(receive)
    assert heard == [(wrapper, True)]


def test_changed_settings_take_the_long_way(wrapper: DatabaseWrapper) -> None:
    wrapper.settings_dict["OPTIONS"]["application_name"] = "changed in place"
    assert ways(wrapper) == ["long"]
    with wrapper.cursor() as cursor:
        cursor.execute("SHOW application_name")
        assert cursor.fetchone() == ("changed in place",)


def test_another_time_zone_takes_the_long_way(wrapper: DatabaseWrapper) -> None:
    wrapper.timezone_name = "Asia/Tokyo"
    assert ways(wrapper) == ["long"]


def test_a_closed_pool_is_replaced_on_the_long_way(wrapper: DatabaseWrapper) -> None:
    registry.close_pools_of(wrapper.alias)
    assert ways(wrapper) == ["long"]


def test_without_autocommit_a_connection_takes_the_long_way(wrapper: DatabaseWrapper) -> None:
    wrapper.settings_dict["AUTOCOMMIT"] = False
    assert ways(wrapper) == ["long"]
    wrapper.close()
    assert ways(wrapper) == ["long"]


def test_callbacks_that_wait_for_a_connection_run_on_the_long_way(
    wrapper: DatabaseWrapper,
) -> None:
    ran: list[str] = []
    vars(wrapper)["run_on_commit"] = [(set(), lambda: ran.append("a callback"), False)]
    wrapper.run_commit_hooks_on_set_autocommit_on = True
    assert ways(wrapper) == ["long"]
    assert ran == ["a callback"]


def test_an_isolation_level_of_the_settings_is_set_on_the_short_way(
    server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    options = {"isolation_level": IsolationLevel.SERIALIZABLE}
    alias = make_database(server, options=options)
    wrapper = connections[alias]
    assert isinstance(wrapper, DatabaseWrapper)
    for way in ("long", "short"):
        assert ways(wrapper) == [way]
        with transaction.atomic(using=alias), wrapper.cursor() as cursor:
            cursor.execute("SHOW transaction_isolation")
            assert cursor.fetchone() == ("serializable",)
        wrapper.close()


@pytest.mark.parametrize("hook", quick.HOOKS)
def test_a_backend_with_something_of_its_own_takes_the_long_way(
    wrapper: DatabaseWrapper, hook: str
) -> None:
    class Other(DatabaseWrapper):
        pass

    def own(self: Any, *args: Any, **kwargs: Any) -> Any:
        called.append(hook)
        return getattr(base.DatabaseWrapper, hook)(self, *args, **kwargs)

    called: list[str] = []
    setattr(Other, hook, own)
    other = Other(wrapper.settings_dict, wrapper.alias)
    for _ in range(2):
        called.clear()
        assert ways(other) == ["long"]
        assert called[:1] == [hook]
        other.close()


@pytest.mark.parametrize("hook", quick.HOOKS)
def test_what_a_test_puts_in_the_place_of_a_hook_is_called(
    wrapper: DatabaseWrapper, hook: str
) -> None:
    with patch.object(wrapper, hook, wraps=getattr(wrapper, hook)) as replaced:
        assert ways(wrapper) == ["long"]
    assert replaced.called


def test_what_watches_django_s_connect_sees_each(wrapper: DatabaseWrapper) -> None:
    seen: list[str] = []

    def connect(self: BaseDatabaseWrapper) -> None:
        seen.append(self.alias)
        own(self)

    own = BaseDatabaseWrapper.connect
    with patch.object(BaseDatabaseWrapper, "connect", connect):
        wrapper.ensure_connection()
    assert seen == [wrapper.alias]


@pytest.mark.parametrize("overridden", [False, True])
def test_at_the_end_of_a_request_a_backend_s_own_close_is_called(
    wrapper: DatabaseWrapper, overridden: bool
) -> None:
    closed: list[bool] = []

    class Other(DatabaseWrapper):
        if overridden:

            def close(self) -> None:
                closed.append(True)
                super().close()

    other = Other(wrapper.settings_dict, wrapper.alias)
    other.ensure_connection()
    vars(other)["run_on_commit"] = ["a callback"]
    other.close_if_unusable_or_obsolete()
    assert (other.connection, other.run_on_commit, closed) == (None, [], [True] * overridden)


def test_at_the_end_of_a_request_what_a_test_puts_in_the_place_of_close_is_called(
    wrapper: DatabaseWrapper,
) -> None:
    wrapper.ensure_connection()
    with patch.object(wrapper, "close", wraps=wrapper.close) as replaced:
        wrapper.close_if_unusable_or_obsolete()
    assert replaced.called
    assert wrapper.connection is None


def test_at_the_end_of_a_request_a_transaction_left_open_is_rolled_back(
    wrapper: DatabaseWrapper,
) -> None:
    block = transaction.atomic(using=wrapper.alias)
    block.__enter__()
    with wrapper.cursor() as cursor:
        cursor.execute("SELECT 1")
    wrapper.close_if_unusable_or_obsolete()
    assert wrapper.closed_in_transaction
    block.__exit__(None, None, None)
    assert wrapper.connection is None
