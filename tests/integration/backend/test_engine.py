from __future__ import annotations

import gc
import os
import socket
import threading
from typing import TYPE_CHECKING, Any, cast

import psycopg
import psycopg_pool
import pytest
from django.core.exceptions import ImproperlyConfigured
from django.core.management import call_command
from django.core.signals import request_finished, request_started
from django.db import (
    DataError,
    OperationalError,
    ProgrammingError,
    close_old_connections,
    connection,
    connections,
)
from django.db.transaction import atomic
from django.test import override_settings

from django_pooled import CheckoutTimeout, ConnectFailed, registry
from django_pooled.base import DatabaseWrapper
from embedded_postgres import free_port
from tests.app.models import Note
from tests.servers.postgresql import backend_pids, kill_backends
from tests.support.pools import snapshot_of
from tests.support.threads import at_once
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from embedded_postgres import EmbeddedServer
    from tests.support.pools import MakeDatabase


def snapshots_of(alias: str) -> list[Any]:
    return [pool for pool in registry.snapshots() if pool.alias == alias]


def ask(alias: str, statement: str) -> Any:
    with connections[alias].cursor() as cursor:
        cursor.execute(statement)
        return cursor.fetchone()[0]


@pytest.mark.django_db(transaction=True)
def test_the_vendor_stays_postgresql_and_the_orm_works() -> None:
    assert connection.vendor == "postgresql"
    assert isinstance(connections["default"], DatabaseWrapper)
    Note.objects.create(text="hello")
    assert Note.objects.get().text == "hello"
    assert list(Note.objects.iterator(chunk_size=1))


@pytest.mark.django_db(transaction=True)
def test_migrations_run_through_the_pool() -> None:
    call_command("migrate", verbosity=0)
    assert snapshot_of("default").counters.checkouts > 0


def test_a_request_s_end_gives_the_connection_back(
    server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    alias = make_database(server)
    pid = ask(alias, "SELECT pg_backend_pid()")
    assert snapshot_of(alias).in_use == 1
    close_old_connections()
    assert (snapshot_of(alias).in_use, snapshot_of(alias).idle) == (0, 1)
    assert ask(alias, "SELECT pg_backend_pid()") == pid
    assert close_old_connections in [receiver[1]() for receiver in request_finished.receivers]
    assert close_old_connections in [receiver[1]() for receiver in request_started.receivers]


def test_threads_share_one_pool(server: EmbeddedServer, make_database: MakeDatabase) -> None:
    alias = make_database(server, max_size=2)
    pids = []

    def work() -> None:
        pids.append(ask(alias, "SELECT pg_backend_pid()"))
        connections[alias].close()

    at_once(work, 20)
    assert len(pids) == 20
    assert len(set(pids)) <= 2


def test_sessions_are_named_after_process_and_host(
    server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    alias = make_database(server)
    name = f"django {os.getpid()}@{socket.gethostname()}"[:63]
    assert ask(alias, "SELECT current_setting('application_name')") == name


def test_the_name_can_be_chosen_or_left_out(
    server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    chosen = make_database(server, options={"application_name": "shop"})
    without = make_database(server, application_name=False)
    assert ask(chosen, "SELECT current_setting('application_name')") == "shop"
    assert ask(without, "SELECT current_setting('application_name')") == ""


def test_a_name_from_the_environment_comes_before_the_pool_s(
    server: EmbeddedServer, make_database: MakeDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGAPPNAME", "till")
    assert ask(make_database(server), "SELECT current_setting('application_name')") == "till"


def test_a_silent_network_loss_ends_in_bounded_time(
    server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    wrapper = connections[make_database(server, options={"connect_timeout": 3})]
    parameters = wrapper.get_connection_params()
    assert parameters["connect_timeout"] == 3
    assert parameters["keepalives_idle"] == 30
    assert parameters["tcp_user_timeout"] == 30_000


def test_the_connection_is_configured_with_time_zone_and_role(
    server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    with psycopg.connect(**server.parameters("postgres"), autocommit=True) as admin:
        admin.execute("DROP ROLE IF EXISTS app_owner")
        admin.execute("CREATE ROLE app_owner")
    alias = make_database(server, options={"assume_role": "app_owner"})
    assert ask(alias, "SELECT current_setting('TimeZone')") == "UTC"
    assert ask(alias, "SELECT current_user") == "app_owner"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"OPTIONS": {"assume_role": "nobody_here"}}, 'role "nobody_here" does not exist'),
        ({"TIME_ZONE": "Mars/Olympus"}, "Mars/Olympus"),
    ],
)
def test_a_configuration_that_the_server_refuses_is_told_at_once(
    server: EmbeddedServer, make_database: MakeDatabase, settings: dict[str, Any], words: str
) -> None:
    alias = make_database(server, timeout=60.0)
    connections.settings[alias].update(settings)
    # Django's own check of the name comes before the server's.
    connections[alias].__dict__["timezone"] = None
    with pytest.raises(OperationalError, match=words) as refused:
        ask(alias, "SELECT 1")
    assert isinstance(refused.value, ConnectFailed)
    assert refused.value.elapsed < 30


@pytest.mark.django_db(transaction=True)
def test_a_changed_time_zone_swaps_the_pool() -> None:
    assert ask("default", "SELECT current_setting('TimeZone')") == "UTC"
    with override_settings(USE_TZ=False, TIME_ZONE="Asia/Tokyo"):
        assert ask("default", "SELECT current_setting('TimeZone')") == "Asia/Tokyo"
        connection.close()
        assert ask("default", "SELECT current_setting('TimeZone')") == "Asia/Tokyo"
    connection.close()
    assert ask("default", "SELECT current_setting('TimeZone')") == "UTC"


def test_a_lost_connection_with_state_is_replaced_in_the_next_request(
    own_server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    alias = make_database(own_server)
    assert ask(alias, "SELECT set_config('my.setting', '1', false)") == "1"
    kill_backends(own_server, "postgres")
    with pytest.raises(OperationalError):
        ask(alias, "SELECT 1")
    close_old_connections()
    assert ask(alias, "SELECT 1") == 1


def test_a_connection_lost_in_an_atomic_block_raises_its_own_error(
    own_server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    # Django would connect anew at the block's end, and with the server away show that error.
    alias = make_database(own_server, timeout=0.5)

    def work() -> None:
        with atomic(using=alias):
            ask(alias, "SELECT 1")
            own_server.stop("immediate")
            ask(alias, "SELECT 1")

    with pytest.raises(OperationalError) as lost:
        work()
    assert not isinstance(lost.value, CheckoutTimeout)
    own_server.start()
    assert wait_until(lambda: ask(alias, "SELECT 1")) == 1
    assert connections[alias].get_autocommit()


def test_a_server_that_turned_read_only_loses_its_connection(
    server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    alias = make_database(server, options={"options": "-c default_transaction_read_only=on"})
    pid = ask(alias, "SELECT pg_backend_pid()")
    with pytest.raises(Exception, match="read-only"), connections[alias].cursor() as cursor:
        cursor.execute("CREATE TABLE never (x int)")
    close_old_connections()
    assert snapshot_of(alias).counters.discarded == 1
    wait_until(lambda: pid not in backend_pids(server, "postgres"))


def test_a_pool_error_passes_as_django_s_operational_error(
    server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    alias = make_database(server, timeout=0.2)
    connections.settings[alias]["PORT"] = free_port()
    with pytest.raises(OperationalError, match=f"pool '{alias}'") as refused:
        ask(alias, "SELECT 1")
    assert isinstance(refused.value, CheckoutTimeout)


def test_a_wrong_isolation_level_is_refused(
    server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    alias = make_database(server, options={"isolation_level": "strict"})
    with pytest.raises(ImproperlyConfigured, match=r"IsolationLevel\.SERIALIZABLE"):
        ask(alias, "SELECT 1")


def test_an_isolation_level_from_settings_holds(
    server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    level = psycopg.IsolationLevel.SERIALIZABLE
    alias = make_database(server, options={"isolation_level": level})
    with atomic(using=alias):
        assert ask(alias, "SELECT current_setting('transaction_isolation')") == "serializable"


def test_bad_options_are_refused_at_first_use(
    server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    alias = make_database(server, max_sise=3)
    with pytest.raises(ImproperlyConfigured, match="Did you mean 'max_size'"):
        ask(alias, "SELECT 1")


def test_closing_the_pool_ends_its_sessions_and_the_next_use_opens_another(
    own_server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    alias = make_database(own_server)
    first = ask(alias, "SELECT pg_backend_pid()")
    connections[alias].close()
    cast("DatabaseWrapper", connections[alias]).close_pool()
    wait_until(lambda: backend_pids(own_server, "postgres") == [])
    assert ask(alias, "SELECT pg_backend_pid()") != first


def test_closing_the_pool_ends_the_sessions_of_other_aliases_of_the_same_database(
    own_server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    alias, twin, other = (make_database(own_server, min_size=2) for _ in range(3))
    connections.settings[other]["NAME"] = "template1"
    for one in (alias, twin, other):
        ask(one, "SELECT 1")
        connections[one].close()
    wait_until(lambda: len(backend_pids(own_server, "postgres")) == 4)
    cast("DatabaseWrapper", connections[alias]).close_pool()
    wait_until(lambda: backend_pids(own_server, "postgres") == [])
    wait_until(lambda: len(backend_pids(own_server, "template1")) == 2)


def test_a_password_may_be_a_callable(server: EmbeddedServer, make_database: MakeDatabase) -> None:
    alias = make_database(server)
    asked: list[None] = []

    def token() -> str:
        asked.append(None)
        return server.password

    connections.settings[alias]["PASSWORD"] = token
    assert ask(alias, "SELECT 1") == 1
    assert asked


def test_what_psycopg_pool_would_have_raised_can_be_looked_for_still(
    server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    alias = make_database(server, max_size=1, timeout=0.2)
    other = connections[alias].copy()
    ask(alias, "SELECT 1")
    with pytest.raises(psycopg_pool.PoolTimeout):
        other.connect()
    with pytest.raises(CheckoutTimeout), other.cursor():
        pass
    ask(alias, "SELECT 1")
    connections[alias].close()
    assert snapshot_of(alias).idle == 1


def test_a_wrapper_that_threads_share_outlives_the_one_that_checked_out(
    server: EmbeddedServer, make_database: MakeDatabase, caplog: pytest.LogCaptureFixture
) -> None:
    alias = make_database(server, max_size=2)
    wrappers: list[Any] = []

    def work() -> None:
        wrapper = connections[alias]
        wrapper.inc_thread_sharing()
        with wrapper.cursor():
            pass
        wrappers.append(wrapper)

    for _ in range(2):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    first, second = wrappers
    assert first.connection.session is not second.connection.session
    assert snapshot_of(alias).in_use == 2
    first.close()
    assert snapshot_of(alias).in_use == 1
    # Its last holder lets go without closing it: the connection does not stay out for ever.
    del second
    wrappers.clear()
    gc.collect()
    wait_until(
        lambda: snapshot_of(alias).in_use == 0 and snapshot_of(alias).counters.reclaimed == 1
    )
    assert "that was dropped without close()" in caplog.text


def test_a_wrapper_that_no_other_thread_may_use_lets_go_when_its_thread_ends(
    server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    alias = make_database(server, max_size=1)
    wrappers: list[Any] = []

    def work() -> None:
        wrappers.append(connections[alias])
        with connections[alias].cursor():
            pass

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    wait_until(lambda: snapshot_of(alias).idle == 1)
    assert wrappers[0].connection is None
    ask(alias, "SELECT 1")


@pytest.mark.parametrize(
    "use",
    [
        lambda cursor: cursor.execute("SELECT 1"),
        lambda cursor: cursor.executemany("SELECT %s", [[1]]),
        lambda cursor: cursor.copy("COPY (SELECT 1) TO STDOUT"),
        lambda cursor: next(cursor.stream("SELECT 1")),
    ],
    ids=["execute", "executemany", "copy", "stream"],
)
def test_a_cursor_is_of_no_use_when_its_connection_went_back(
    server: EmbeddedServer, make_database: MakeDatabase, use: Callable[[Any], object]
) -> None:
    alias = make_database(server, max_size=1)
    cursor = connections[alias].cursor()
    cursor.execute("SELECT 1")
    connections[alias].close()
    with pytest.raises(Exception, match="went back to its pool"):
        use(cursor)
    other = connections[alias].copy()
    with other.cursor():
        # The same connection, and somebody else's now.
        with pytest.raises(Exception, match="went back to its pool"):
            use(cursor)
        other.close()
    assert ask(alias, "SELECT 1") == 1


def test_a_service_file_keeps_the_last_word(
    server: EmbeddedServer,
    make_database: MakeDatabase,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    alias = make_database(server, options={"service": "shop"})
    found = {**server.parameters("postgres"), "connect_timeout": 7, "keepalives_count": 9}
    lines = [f"{key}={value}" for key, value in found.items()]
    (tmp_path / "services").write_text("\n".join(["[shop]", *lines]))
    monkeypatch.setenv("PGSERVICEFILE", str(tmp_path / "services"))
    for key in ("HOST", "PORT", "NAME", "USER", "PASSWORD"):
        monkeypatch.setitem(connections.settings[alias], key, "")
    assert ask(alias, "SELECT current_database()") == "postgres"
    parameters = connections[alias].connection.info.get_parameters()
    assert (parameters["connect_timeout"], parameters["keepalives_count"]) == ("7", "9")


def test_another_time_zone_reaches_the_next_connection_of_a_wrapper_without_one(
    server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    alias = make_database(server)
    assert ask(alias, "SHOW timezone") == "UTC"
    connections[alias].close()
    with override_settings(USE_TZ=False, TIME_ZONE="Asia/Tokyo"):
        assert snapshots_of(alias) == []
        assert ask(alias, "SHOW timezone") == "Asia/Tokyo"
        connections[alias].close()
    assert ask(alias, "SHOW timezone") == "UTC"


def test_a_commit_without_a_connection_opens_none(
    server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    alias = make_database(server)
    connections[alias].commit()
    assert connections[alias].connection is None
    assert snapshots_of(alias) == []


def test_an_error_of_a_maintenance_connection_is_no_concern_of_the_pool(
    server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    alias = make_database(server)
    ask(alias, "SELECT 1")
    wrapper: Any = connections[alias]
    with wrapper._nodb_cursor() as cursor, pytest.raises(DataError):
        cursor.execute("SELECT 1/0")
    wrapper.close()
    assert (snapshot_of(alias).idle, snapshot_of(alias).counters.discarded) == (1, 0)


def test_a_parameter_without_a_hash_leads_to_the_same_pool_each_time(
    server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    alias = make_database(server, options={"application_name": ["shop"]})
    assert ask(alias, "SHOW application_name") == "['shop']"
    connections[alias].close()
    connections[alias].forget_connection()  # type: ignore[attr-defined]
    assert ask(alias, "SHOW application_name") == "['shop']"
    assert snapshot_of(alias).counters.connects == 1


def test_a_wrapper_that_has_gone_on_to_another_connection_keeps_nothing_of_the_first(
    server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    alias = make_database(server, max_size=2)
    wrapper = cast("DatabaseWrapper", connections[alias])
    wrapper.inc_thread_sharing()
    wrapper.ensure_connection()
    first = wrapper.connection
    assert wrapper.keeps(first)
    wrapper.copy().adopt_connection(wrapper)
    wrapper.ensure_connection()
    assert not wrapper.keeps(first)
    pool = wrapper.pool
    assert pool is not None
    pool.checkin(first)


def test_a_lost_connection_is_told_to_who_asks_for_autocommit_inside_its_transaction(
    server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    alias = make_database(server)
    assert connections[alias].get_autocommit()
    with atomic(using=alias):
        connections[alias].close()
        with pytest.raises(ProgrammingError, match="in an atomic block"):
            connections[alias].get_autocommit()
    assert connections[alias].get_autocommit()
