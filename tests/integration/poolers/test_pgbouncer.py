"""PgBouncer between the pool and the server: what it alone says and does, and what comes of it."""

from __future__ import annotations

import ast
import re
import signal
from concurrent.futures import ThreadPoolExecutor
from configparser import ConfigParser
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from django.core.checks.database import check_database_backends
from django.db import DataError, connections
from django.db.transaction import atomic

from django_pooled import CheckoutTimeout, ConnectFailed, PoolError
from django_pooled.sql.sqlstates import is_server_away
from embedded_postgres import free_port
from tests.servers import pgbouncer
from tests.servers.fault_proxy import FaultProxy
from tests.servers.pgbouncer import PgBouncer
from tests.servers.postgresql import backend_pids, kill_backends
from tests.support.poolers import (
    crash,
    end_sessions,
    in_all_modes,
    in_both_modes_of_ours,
)
from tests.support.pools import query
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from django.core.checks import CheckMessage

    from embedded_postgres import EmbeddedServer
    from tests.servers.pooler import Pooler
    from tests.support.poolers import MakeLedger, MakePoolBehind, Mode
    from tests.support.pools import MakeDatabase

pytestmark = pytest.mark.skipif(pgbouncer.PROGRAM is None, reason="PgBouncer is not installed")

PAGE = Path(__file__).resolve().parents[3] / "docs" / "deploy" / "pgbouncer.md"
# Restarts, and commands on its console, under load.


@in_both_modes_of_ours
def test_a_shutdown_that_waits_for_transactions_fails_none(
    server: EmbeddedServer, make_ledger: MakeLedger, our_mode: Mode
) -> None:
    with PgBouncer(server, "transaction") as bouncer:
        ledger = make_ledger(bouncer, our_mode)
        with ledger.load():
            bouncer.stop(signal.SIGINT)
            bouncer.start()
        assert ledger.failures == []
        assert ledger.rows == sorted(ledger.acknowledged)


@pytest.mark.parametrize(
    ("command", "has_begun"),
    [
        (
            lambda bouncer: bouncer.console("PAUSE postgres"),
            lambda bouncer: any(int(row["paused"]) for row in bouncer.console("SHOW DATABASES")),
        ),
        (lambda bouncer: bouncer.stop(signal.SIGINT), lambda bouncer: "SIGINT" in bouncer.log),
    ],
    ids=["a pause", "a shutdown that waits for transactions"],
)
def test_in_session_mode_pools_have_to_close_their_idle_connections_for(
    server: EmbeddedServer,
    make_pool_behind: MakePoolBehind,
    command: Callable[[PgBouncer], object],
    has_begun: Callable[[PgBouncer], bool],
) -> None:
    with ThreadPoolExecutor(1) as thread, PgBouncer(server, "session") as bouncer:
        pool = make_pool_behind(bouncer)
        assert query(pool) == 42
        commanded = thread.submit(command, bouncer)
        wait_until(lambda: has_begun(bouncer))
        # Meanwhile a pool that has a session goes on.
        assert query(pool) == 42
        assert not commanded.done()
        pool.close()
        commanded.result(10.0)


@in_all_modes
@pytest.mark.parametrize("event", [crash, end_sessions], ids=lambda it: it.__name__)
def test_a_client_that_was_dropped_between_two_statements_goes_on(
    server: EmbeddedServer,
    make_ledger: MakeLedger,
    poolers_mode: Mode,
    our_mode: Mode,
    event: Callable[[Pooler, EmbeddedServer], None],
) -> None:
    with PgBouncer(server, poolers_mode) as bouncer:
        ledger = make_ledger(bouncer, our_mode)
        assert ledger.query("SELECT 42") == 42
        with atomic(using=ledger.alias):
            connection = connections[ledger.alias].connection
            event(bouncer, server)
            # PgBouncer keeps its clients in transaction mode, and has another session for them.
            if event is crash or poolers_mode == "session":
                wait_until(connection.session.is_readable)
            assert ledger.query("SELECT 42") == 42
        connections[ledger.alias].close()


def test_in_session_mode_a_session_that_ended_while_idle_fails_no_checkout(
    server: EmbeddedServer, make_pool_behind: MakePoolBehind
) -> None:
    with PgBouncer(server, "session") as bouncer:
        pool = make_pool_behind(bouncer)
        assert query(pool) == 42
        kill_backends(server, "postgres")
        wait_until(lambda: "postgres" not in bouncer.clients)
        assert query(pool) == 42
        assert pool.snapshot().counters.closed["dead"] == 1


def test_behind_a_full_pgbouncer_a_checkout_waits_and_says_why_it_failed(
    server: EmbeddedServer, make_pool_behind: MakePoolBehind
) -> None:
    with PgBouncer(server, "transaction", max_client_conn=2) as bouncer:
        others = [psycopg.connect(**bouncer.parameters("postgres")) for _ in range(2)]
        pool = make_pool_behind(bouncer, min_size=0, timeout=0.5)
        with pytest.raises(CheckoutTimeout, match="no more connections allowed"):
            query(pool)
        patient = make_pool_behind(bouncer, min_size=0)
        with ThreadPoolExecutor(1) as thread:
            answer = thread.submit(query, patient)
            wait_until(lambda: patient.snapshot().counters.connect_failures >= 2)
            assert not answer.done()
            for other in others:
                other.close()
            assert answer.result(10.0) == 42


@pytest.mark.parametrize("by", ["server_lifetime", "server_idle_timeout", "RECONNECT"])
def test_pgbouncer_changes_sessions_without_a_pool_noticing(
    server: EmbeddedServer, make_pool_behind: MakePoolBehind, by: str
) -> None:
    settings: dict[str, Any] = {} if by == "RECONNECT" else {by: 1}
    with PgBouncer(server, "transaction", **settings) as bouncer:
        pool = make_pool_behind(bouncer)
        before = query(pool, "SELECT pg_backend_pid()")
        if by == "RECONNECT":
            bouncer.console("RECONNECT")
        # An idle one ends only while nobody asks it.
        wait_until(lambda: before not in backend_pids(server, "postgres"), 20.0)
        wait_until(lambda: query(pool, "SELECT pg_backend_pid()") != before)
        assert pool.snapshot().counters.connects == 1


def test_connections_that_pgbouncer_closed_for_being_idle_fail_no_checkout(
    server: EmbeddedServer, make_pool_behind: MakePoolBehind
) -> None:
    with PgBouncer(server, "transaction", client_idle_timeout=1) as bouncer:
        pool = make_pool_behind(bouncer, max_size=2)
        held = [pool.checkout(), pool.checkout()]
        for connection in held:
            pool.checkin(connection)
        wait_until(lambda: "postgres" not in bouncer.clients)
        assert query(pool) == 42
        assert pool.snapshot().counters.closed["dead"] == 2


@pytest.mark.skipif(pgbouncer.version() < (1, 23), reason="PgBouncer has it since 1.23")
def test_a_shutdown_that_waits_for_clients_waits_for_idle_pools(
    server: EmbeddedServer, make_pool_behind: MakePoolBehind
) -> None:
    with PgBouncer(server, "transaction") as bouncer:
        pool = make_pool_behind(bouncer)
        assert query(pool) == 42
        bouncer.console("SHUTDOWN WAIT_FOR_CLIENTS")
        late = make_pool_behind(bouncer, min_size=0, timeout=0.3)
        with pytest.raises(CheckoutTimeout, match="refused"):
            query(late)
        assert query(pool) == 42
        assert bouncer.running
        pool.close()
        wait_until(lambda: not bouncer.running)


@in_both_modes_of_ours
def test_while_the_server_is_away_a_checkout_succeeds_and_its_statement_fails(
    server: EmbeddedServer, make_ledger: MakeLedger, our_mode: Mode
) -> None:
    with PgBouncer(server, "transaction", query_wait_timeout=0.5) as bouncer:
        ledger = make_ledger(bouncer, our_mode)
        ledger.write()
        server.stop("fast")
        try:
            # PgBouncer answers logins itself, once it knows the database.
            while len(ledger.failures) < 2:
                ledger.write(max_attempts=1)
        finally:
            server.start()
        assert all(is_server_away(failure) for failure in ledger.failures)
        assert not any(isinstance(failure, PoolError) for failure in ledger.failures)
        assert "server login has been failing" in str(ledger.failures[-1])
        ledger.write()
        assert len(ledger.acknowledged) == 2
        assert ledger.rows == sorted(ledger.acknowledged)


def test_a_ping_during_a_pause_costs_a_connection_and_no_request(
    server: EmbeddedServer, make_pool_behind: MakePoolBehind
) -> None:
    with ThreadPoolExecutor(1) as thread, PgBouncer(server, "transaction") as bouncer:
        pool = make_pool_behind(bouncer, check_after=0.5, check_timeout=0.2)
        assert query(pool) == 42
        bouncer.console("PAUSE")
        due = monotonic() + 0.5
        wait_until(lambda: monotonic() > due)
        answer = thread.submit(query, pool)
        # It waits on a fresh one.
        wait_until(lambda: pool.snapshot().counters.closed["dead"] == 1)
        assert not answer.done()
        bouncer.console("RESUME")
        assert answer.result(10.0) == 42


# State of sessions, cursors and prepared statements.


@in_all_modes
@pytest.mark.parametrize("binds_on_server", [False, True], ids=["client-side", "server-side"])
def test_begin_and_savepoints_travel_with_statements_through_it(
    server: EmbeddedServer,
    make_ledger: MakeLedger,
    poolers_mode: Mode,
    our_mode: Mode,
    *,
    binds_on_server: bool,
) -> None:
    with (
        PgBouncer(server, poolers_mode) as bouncer,
        FaultProxy(bouncer.host, bouncer.port, listen=free_port()) as proxy,
    ):
        ledger = make_ledger(bouncer, our_mode)
        alias = ledger.alias
        settings = connections.settings[alias]
        settings["PORT"] = proxy.port
        settings["OPTIONS"]["server_side_binding"] = binds_on_server

        def insert(number: int) -> None:
            with connections[alias].cursor() as cursor:
                cursor.execute("INSERT INTO ledger VALUES (%s)", [number])

        def nested() -> None:
            with atomic(using=alias):
                for number in range(3):
                    with suppress(DataError), atomic(using=alias):
                        insert(number if number != 1 else 2**40)

        # Sessions that are idle in the pooler or not, and the client's connection as well.
        for _ in range(2):
            before = proxy.round_trips()
            nested()
            took = proxy.round_trips() - before
        # That which fails, and ROLLBACK TO: it does not wait, since the transaction is aborted.
        assert took == 5
        connections[alias].close()
    assert ledger.rows == [0, 0, 2, 2]


@in_all_modes
def test_settings_and_channels_are_kept_by_session_mode_alone(
    server: EmbeddedServer, make_ledger: MakeLedger, poolers_mode: Mode, our_mode: Mode
) -> None:
    with PgBouncer(server, poolers_mode) as bouncer:
        ledger = make_ledger(bouncer, our_mode)
        # Kept by our transaction mode to the end of the request, and yet PgBouncer moves it.
        ledger.query("SET statement_timeout = 54321")
        ledger.query("LISTEN news")
        held = ledger.query("SELECT pg_backend_pid()")
        with psycopg.connect(**bouncer.parameters("postgres")) as other:
            # In transaction mode it is served by the session that was used last.
            row = other.execute("SELECT pg_backend_pid(), current_setting('statement_timeout')")
            theirs, leaked = row.fetchone() or (None, None)
            assert (theirs == held) == (leaked == "54321ms") == (poolers_mode == "transaction")
            kept = [
                ledger.query("SHOW statement_timeout") == "54321ms",
                bool(ledger.query("SELECT count(*) FROM pg_listening_channels()")),
            ]
        assert kept == [poolers_mode == "session"] * 2
        connections[ledger.alias].close()


# Refusals at login.


@pytest.mark.parametrize("why", ["disabled", "SSL required", "login rejected"])
def test_refusals_that_waiting_does_not_mend_are_told_at_once(
    server: EmbeddedServer, make_pool_behind: MakePoolBehind, why: str
) -> None:
    with PgBouncer(server, "transaction") as bouncer:
        if why == "disabled":
            bouncer.console("DISABLE postgres")
        elif why == "SSL required":
            bouncer.require_tls()
        else:
            bouncer.reject_databases()
        pool = make_pool_behind(bouncer, parameters={"sslmode": "disable"}, min_size=0)
        with pytest.raises(ConnectFailed, match=why):
            query(pool)


# What ``manage.py check --database`` says where PgBouncer lets the site's role on to its console.

NO_CURSORS = {"DISABLE_SERVER_SIDE_CURSORS": True}
PREPARING = {"server_side_binding": True, "prepare_threshold": 0}
FITTING = {"query_wait_timeout": 5, "default_pool_size": 10, "max_client_conn": 100}


@pytest.fixture
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that tells of more."""
    for name in ("WEB_CONCURRENCY", "GUNICORN_CMD_ARGS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def check_behind(
    server: EmbeddedServer, make_database: MakeDatabase, one_process: None
) -> Callable[..., list[CheckMessage]]:
    """Check a database that leads to PgBouncer, but for what is not about PgBouncer."""

    def check(
        bouncer: PgBouncer,
        entry: dict[str, Any] | None = None,
        options: dict[str, Any] | None = None,
        **pool: Any,
    ) -> list[CheckMessage]:
        alias = make_database(server, options=options, **{"max_size": 4, **pool})
        connections.settings[alias].update(HOST=bouncer.host, PORT=bouncer.port, **(entry or {}))
        return [each for each in check_database_backends(databases=[alias]) if alias in each.msg]

    return check


def ids(messages: list[CheckMessage]) -> list[str]:
    return [str(message.id).removeprefix("django_pooled.") for message in messages]


@pytest.mark.parametrize(
    ("settings", "entry", "options", "pool", "expected"),
    [
        ({}, NO_CURSORS, {}, {}, []),
        ({}, {}, {}, {}, ["W015"]),
        ({}, NO_CURSORS, {"assume_role": "x"}, {}, ["W014"]),
        (pgbouncer.not_following(), NO_CURSORS, PREPARING, {}, ["W013"]),
        ({"max_client_conn": 15}, NO_CURSORS, {}, {"max_size": 16}, ["W010"]),
        ({"max_client_conn": 15}, NO_CURSORS, {}, {"max_size": 15}, []),
        ({"default_pool_size": 3}, NO_CURSORS, {}, {}, []),
        ({"client_idle_timeout": 60}, NO_CURSORS, {}, {}, ["W011"]),
        ({"client_idle_timeout": 60}, NO_CURSORS, {}, {"min_size": 0, "max_idle": 60.0}, []),
        ({"query_wait_timeout": 11}, NO_CURSORS, {}, {}, ["W018"]),
        ({"query_wait_timeout": 0}, NO_CURSORS, {}, {}, ["W018"]),
        ({"query_wait_timeout": 10}, NO_CURSORS, {}, {}, []),
    ],
)
def test_the_check_compares_the_settings_of_both_in_transaction_mode(
    server: EmbeddedServer,
    check_behind: Callable[..., list[CheckMessage]],
    settings: dict[str, Any],
    entry: dict[str, Any],
    options: dict[str, Any],
    pool: dict[str, Any],
    expected: list[str],
) -> None:
    given: dict[str, Any] = {**FITTING, **settings}
    with PgBouncer(server, "transaction", **given) as bouncer:
        first, *others = check_behind(bouncer, entry, options, **pool)
    assert first.id == "django_pooled.W012"
    assert "PgBouncer in transaction mode" in first.msg
    assert ids(others) == expected
    assert all(message.hint for message in others)


@pytest.mark.skipif(pgbouncer.version() < (1, 21), reason="PgBouncer has it since 1.21")
def test_the_check_knows_when_pgbouncer_follows_prepared_statements(
    server: EmbeddedServer, check_behind: Callable[..., list[CheckMessage]]
) -> None:
    given: dict[str, Any] = {**FITTING, "max_prepared_statements": 100}
    with PgBouncer(server, "transaction", **given) as bouncer:
        assert ids(check_behind(bouncer, NO_CURSORS, PREPARING)) == ["W012"]


@pytest.mark.parametrize(("pool_size", "expected"), [(4, ["W012"]), (3, ["W012", "W010"])])
def test_the_check_knows_that_in_session_mode_pools_have_to_fit_and_nothing_else_matters(
    server: EmbeddedServer,
    check_behind: Callable[..., list[CheckMessage]],
    pool_size: int,
    expected: list[str],
) -> None:
    given: dict[str, Any] = {**FITTING, "default_pool_size": pool_size}
    with PgBouncer(server, "session", **given) as bouncer:
        messages = check_behind(bouncer, {}, {**PREPARING, "assume_role": "x"}, reset="discard")
    assert ids(messages) == expected
    assert "session mode" in messages[-1].msg


def test_the_check_believes_what_is_said_of_a_single_database(
    server: EmbeddedServer, check_behind: Callable[..., list[CheckMessage]]
) -> None:
    given: dict[str, Any] = {**FITTING, "database_options": "pool_mode=session pool_size=2"}
    with PgBouncer(server, "transaction", **given) as bouncer:
        messages = check_behind(bouncer, NO_CURSORS)
    assert ids(messages) == ["W012", "W010"]
    assert "has 2 for all" in messages[1].msg


def test_the_check_says_that_statement_mode_refuses_transactions(
    server: EmbeddedServer, check_behind: Callable[..., list[CheckMessage]]
) -> None:
    with PgBouncer(server, "statement") as bouncer:
        (message,) = check_behind(bouncer, NO_CURSORS)
    assert message.id == "django_pooled.W009"
    assert "statement pooling mode" in message.msg


def test_the_settings_of_the_page_fit_together(
    server: EmbeddedServer, check_behind: Callable[..., list[CheckMessage]]
) -> None:
    ini, python = re.findall(r"```(?:ini|python)\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    config = ConfigParser()
    config.read_string(ini)
    settings: dict[str, Any] = dict(config["pgbouncer"])
    assigned = [each for each in ast.parse(python).body if isinstance(each, ast.Assign)]
    databases, silenced = (ast.literal_eval(each.value) for each in assigned)
    entry = databases["default"]
    options = entry.pop("OPTIONS")
    meant = {name: entry[name] for name in ("ENGINE", "DISABLE_SERVER_SIDE_CURSORS")}
    with PgBouncer(server, **settings) as bouncer:
        messages = check_behind(bouncer, meant, **options["pool"])
    assert [message.id for message in messages] == silenced
