"""A pooler between the pool and the server: what holds behind PgBouncer and behind Odyssey."""

from __future__ import annotations

import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from django.db import connections, transaction

from tests.servers import pgbouncer
from tests.servers.odyssey import Odyssey
from tests.servers.pgbouncer import PgBouncer
from tests.support.ledger import THREADS
from tests.support.poolers import (
    crash,
    end_sessions,
    in_all_modes,
    in_both_modes_of_ours,
    restart_the_server,
)
from tests.support.pools import query
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from embedded_postgres import EmbeddedServer
    from tests.servers.pooler import Pooler
    from tests.support.poolers import MakeLedger, MakePoolBehind, Mode
    from tests.support.pools import MakeDatabase

Kind = type[PgBouncer] | type[Odyssey]


def a_case(kind: Kind, *values: Any, name: str = "") -> Any:
    """Return a case of a parametrized test, for those who have the pooler installed."""
    missing = pytest.mark.skipif(kind.program is None, reason=f"{kind.name} is not installed")
    return pytest.param(kind, *values, marks=missing, id=f"{kind.name} {name}".rstrip())


behind_each = pytest.mark.parametrize("kind", [a_case(PgBouncer), a_case(Odyssey)])


def shut_down(bouncer: Pooler, server: EmbeddedServer) -> None:
    with suppress(psycopg.OperationalError):
        # It ends without an answer.
        bouncer.console("SHUTDOWN")
    wait_until(lambda: not bouncer.running)
    bouncer.start()


def reconnect(bouncer: Pooler, server: EmbeddedServer) -> None:
    bouncer.console("RECONNECT")


def kill(bouncer: Pooler, server: EmbeddedServer) -> None:
    bouncer.console("KILL postgres")
    bouncer.console("RESUME postgres")


def end(odyssey: Pooler, server: EmbeddedServer) -> None:
    odyssey.stop(signal.SIGINT)
    odyssey.start()


EVENTS: dict[Kind, list[Callable[[Pooler, EmbeddedServer], None]]] = {
    PgBouncer: [crash, shut_down, reconnect, kill, end_sessions, restart_the_server],
    Odyssey: [crash, end, end_sessions, restart_the_server],
}


@in_all_modes
@pytest.mark.parametrize(
    ("kind", "event"),
    [
        a_case(kind, event, name=event.__name__)
        for kind, events in EVENTS.items()
        for event in events
    ],
)
def test_whatever_happens_under_load_each_call_is_acknowledged_and_is_one_row(
    server: EmbeddedServer,
    make_ledger: MakeLedger,
    poolers_mode: Mode,
    our_mode: Mode,
    kind: Kind,
    event: Callable[[Pooler, EmbeddedServer], None],
) -> None:
    settings: dict[str, Any] = {kind.pool_size: 6}
    with kind(server, poolers_mode, **settings) as pooler:
        ledger = make_ledger(pooler, our_mode)
        with ledger.load():
            event(pooler, server)
        assert ledger.failures == []
        assert ledger.rows == sorted(ledger.acknowledged)
        # Nothing is lost for good.
        assert (ledger.pool.in_use, ledger.pool.waiting) == (0, 0)
        assert 1 <= ledger.pool.size <= THREADS


@in_both_modes_of_ours
@behind_each
def test_a_restart_of_the_server_between_pause_and_resume_fails_nothing(
    server: EmbeddedServer, make_ledger: MakeLedger, kind: Kind, our_mode: Mode
) -> None:
    # Odyssey does not wait for transactions that are under way: those are restarted.
    waits = kind is PgBouncer
    settings: dict[str, Any] = {kind.pool_size: 6}
    with kind(server, "transaction", **settings) as pooler:
        ledger = make_ledger(pooler, our_mode)
        with ledger.load(max_attempts=1 if waits else 200):
            pooler.console("pause")
            restart_the_server(pooler, server)
            pooler.console("resume")
        assert ledger.failures == []
        assert ledger.rows == sorted(ledger.acknowledged)
        assert not waits or sum(ledger.pool.counters.closed.values()) == 0


@in_all_modes
@behind_each
def test_a_commit_under_way_when_the_pooler_dies_is_found_out(
    server: EmbeddedServer, make_ledger: MakeLedger, kind: Kind, poolers_mode: Mode, our_mode: Mode
) -> None:
    with ThreadPoolExecutor(1) as thread, kind(server, poolers_mode) as pooler:
        ledger = make_ledger(pooler, our_mode)
        # COMMIT takes a while.
        ledger.ask(
            "CREATE OR REPLACE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS "
            "'BEGIN PERFORM pg_sleep(0.5); RETURN NULL; END'",
            "CREATE CONSTRAINT TRIGGER dawdle AFTER INSERT ON ledger "
            "DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION dawdle()",
        )
        written = thread.submit(ledger.write)
        wait_until(
            lambda: ledger.ask(
                "SELECT 1 FROM pg_stat_activity WHERE query = 'COMMIT' AND state = 'active'"
            )
        )
        crash(pooler, server)
        written.result(20.0)
        assert ledger.failures == []
        assert ledger.rows == ledger.acknowledged == [0]


@in_all_modes
@behind_each
def test_a_server_side_cursor_within_a_transaction_works(
    server: EmbeddedServer, make_ledger: MakeLedger, kind: Kind, poolers_mode: Mode, our_mode: Mode
) -> None:
    with kind(server, poolers_mode) as pooler:
        alias = make_ledger(pooler, our_mode).alias
        with transaction.atomic(using=alias), connections[alias].chunked_cursor() as cursor:
            cursor.execute("SELECT generate_series(1, 300)")
            assert len(cursor.fetchmany(100)) == 100
            assert len(cursor.fetchall()) == 200
        connections[alias].close()


@in_all_modes
@behind_each
def test_locks_and_temporary_tables_are_kept_by_session_mode_alone(
    server: EmbeddedServer, make_ledger: MakeLedger, kind: Kind, poolers_mode: Mode, our_mode: Mode
) -> None:
    with kind(server, poolers_mode) as pooler:
        ledger = make_ledger(pooler, our_mode)
        # Kept by our transaction mode to the end of the request, and yet the pooler moves it.
        ledger.query("SELECT pg_advisory_lock(1)")
        ledger.query("CREATE TEMPORARY TABLE mine (x int)")
        with psycopg.connect(**pooler.parameters("postgres")) as other:
            # In transaction mode it is served by the session that was used last.
            other.execute("SELECT 1")
            kept = [
                ledger.query("SELECT pg_advisory_unlock(1)"),
                ledger.query("SELECT to_regclass('pg_temp.mine') IS NOT NULL"),
            ]
        assert kept == [poolers_mode == "session"] * 2
        connections[ledger.alias].close()


@in_both_modes_of_ours
@behind_each
def test_prepared_statements_move_where_the_pooler_follows_them(
    server: EmbeddedServer, make_database: MakeDatabase, kind: Kind, our_mode: Mode
) -> None:
    if kind is PgBouncer and pgbouncer.version() < (1, 21):
        pytest.skip("PgBouncer has it since 1.21")
    with kind(server, "transaction", **kind.following) as pooler:
        options = {"server_side_binding": True, "prepare_threshold": 0}
        alias = make_database(server, options=options, pool_mode=our_mode)
        connections.settings[alias].update(HOST=pooler.host, PORT=pooler.port)
        sessions = set()
        with ExitStack() as stack:
            for number in range(3):
                with connections[alias].cursor() as cursor:
                    cursor.execute("SELECT %s::int, pg_backend_pid()", [number])
                    answer, session = cursor.fetchone()
                assert answer == number
                sessions.add(session)
                # Takes the session that was just used.
                other = stack.enter_context(psycopg.connect(**pooler.parameters("postgres")))
                assert other.execute("SELECT pg_backend_pid()").fetchone() == (session,)
        assert len(sessions) == 3
        connections[alias].close()


@behind_each
def test_a_pool_that_cannot_grow_in_a_full_pooler_serves_waiters_from_what_it_has(
    server: EmbeddedServer, make_pool_behind: MakePoolBehind, kind: Kind
) -> None:
    settings: dict[str, Any] = {kind.max_clients: 1}
    with kind(server, "transaction", **settings) as pooler:
        pool = make_pool_behind(pooler, max_size=3)
        held = pool.checkout()
        with ThreadPoolExecutor(2) as threads:
            answers = [threads.submit(query, pool) for _ in range(2)]
            wait_until(lambda: pool.gauges().waiting == 2)
            wait_until(lambda: pool.snapshot().counters.connect_failures >= 1)
            pool.checkin(held)
            assert [answer.result(10.0) for answer in answers] == [42, 42]
        assert pool.snapshot().counters.connects == 1
