"""Odyssey between the pool and the server, with what is tried of PgBouncer too."""

from __future__ import annotations

import itertools
import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Literal, Protocol

import psycopg
import pytest
from django.core.checks.database import check_database_backends
from django.db import connections, transaction

from django_pooled import ConnectFailed
from tests.servers.odyssey import PROGRAM, Odyssey
from tests.servers.postgresql import kill_backends
from tests.support.ledger import THREADS, Ledger
from tests.support.pools import query
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from django_pooled.pool.pool import Pool
    from embedded_postgres import EmbeddedServer
    from tests.support.pools import MakeDatabase, MakePool

    Mode = Literal["session", "transaction"]

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="Odyssey is not installed")

MODES = list(itertools.product(["session", "transaction"], repeat=2))

in_all_modes = pytest.mark.parametrize(
    ("poolers_mode", "our_mode"), MODES, ids=[f"{one} before {other}" for one, other in MODES]
)
in_both_modes_of_ours = pytest.mark.parametrize("our_mode", ["session", "transaction"])


@pytest.fixture(scope="module")
def server(private_server: EmbeddedServer) -> EmbeddedServer:
    """A server that tests of this module stop and start; it runs again after each."""
    return private_server


@pytest.fixture
def make_ledger(server: EmbeddedServer, make_database: MakeDatabase) -> Callable[..., Ledger]:
    """Make a database that Django reaches through Odyssey."""

    def make(odyssey: Odyssey, our_mode: str = "session", **pool: Any) -> Ledger:
        alias = make_database(server, pool_mode=our_mode, **{"max_size": THREADS, **pool})
        connections.settings[alias].update(HOST=odyssey.host, PORT=odyssey.port)
        return Ledger(alias, server)

    return make


class MakePoolBehind(Protocol):
    def __call__(self, odyssey: Odyssey, **options: Any) -> Pool: ...


@pytest.fixture
def make_pool_behind(server: EmbeddedServer, make_pool: MakePool) -> MakePoolBehind:
    """Make a pool that leads to Odyssey, and as Django prepares no statement."""

    def make(odyssey: Odyssey, **options: Any) -> Pool:
        leading = {**odyssey.parameters("postgres"), **options.pop("parameters", {})}
        return make_pool(server, parameters=leading, **options)

    return make


def crash(odyssey: Odyssey, server: EmbeddedServer) -> None:
    odyssey.stop()
    odyssey.start()


def end(odyssey: Odyssey, server: EmbeddedServer) -> None:
    odyssey.stop(signal.SIGINT)
    odyssey.start()


def end_sessions(odyssey: Odyssey, server: EmbeddedServer) -> None:
    assert kill_backends(server, "postgres")


def restart_the_server(odyssey: Odyssey, server: EmbeddedServer) -> None:
    server.stop("fast")
    server.start()


@in_all_modes
@pytest.mark.parametrize(
    "event", [crash, end, end_sessions, restart_the_server], ids=lambda event: event.__name__
)
def test_whatever_happens_under_load_each_call_is_acknowledged_and_is_one_row(
    server: EmbeddedServer,
    make_ledger: Callable[..., Ledger],
    poolers_mode: Mode,
    our_mode: Mode,
    event: Callable[[Odyssey, EmbeddedServer], None],
) -> None:
    with Odyssey(server, poolers_mode, pool_size=6) as odyssey:
        ledger = make_ledger(odyssey, our_mode)
        with ledger.load():
            event(odyssey, server)
        assert ledger.failures == []
        assert ledger.rows == sorted(ledger.acknowledged)
        assert (ledger.pool.in_use, ledger.pool.waiting) == (0, 0)
        assert 1 <= ledger.pool.size <= THREADS


@in_both_modes_of_ours
def test_a_restart_of_the_server_between_pause_and_resume_fails_nothing(
    server: EmbeddedServer, make_ledger: Callable[..., Ledger], our_mode: Mode
) -> None:
    with Odyssey(server, "transaction", pool_size=6) as odyssey:
        ledger = make_ledger(odyssey, our_mode)
        with ledger.load():
            # It does not wait for transactions that are under way: those are restarted.
            odyssey.console("pause")
            restart_the_server(odyssey, server)
            odyssey.console("resume")
        assert ledger.failures == []
        assert ledger.rows == sorted(ledger.acknowledged)


@in_all_modes
def test_a_commit_under_way_when_odyssey_dies_is_found_out(
    server: EmbeddedServer,
    make_ledger: Callable[..., Ledger],
    poolers_mode: Mode,
    our_mode: Mode,
) -> None:
    with ThreadPoolExecutor(1) as thread, Odyssey(server, poolers_mode) as odyssey:
        ledger = make_ledger(odyssey, our_mode)
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
        crash(odyssey, server)
        written.result(20.0)
        assert ledger.failures == []
        assert ledger.rows == ledger.acknowledged == [0]


@in_all_modes
def test_a_server_side_cursor_within_a_transaction_works(
    server: EmbeddedServer,
    make_ledger: Callable[..., Ledger],
    poolers_mode: Mode,
    our_mode: Mode,
) -> None:
    with Odyssey(server, poolers_mode) as odyssey:
        alias = make_ledger(odyssey, our_mode).alias
        with transaction.atomic(using=alias), connections[alias].chunked_cursor() as cursor:
            cursor.execute("SELECT generate_series(1, 300)")
            assert len(cursor.fetchmany(100)) == 100
            assert len(cursor.fetchall()) == 200
        connections[alias].close()


@in_all_modes
def test_state_of_a_session_is_kept_by_session_mode_alone(
    server: EmbeddedServer,
    make_ledger: Callable[..., Ledger],
    poolers_mode: Mode,
    our_mode: Mode,
) -> None:
    with Odyssey(server, poolers_mode) as odyssey:
        alias = make_ledger(odyssey, our_mode).alias

        def ask(statement: str) -> Any:
            with connections[alias].cursor() as cursor:
                cursor.execute(statement)
                return cursor.fetchone()[0] if cursor.description else None

        ask("SELECT pg_advisory_lock(1)")
        ask("CREATE TEMPORARY TABLE mine (x int)")
        with psycopg.connect(**odyssey.parameters("postgres")) as other:
            # In transaction mode it is served by the session that was used last.
            other.execute("SELECT 1")
            kept = [
                ask("SELECT pg_advisory_unlock(1)"),
                ask("SELECT to_regclass('pg_temp.mine') IS NOT NULL"),
            ]
        assert kept == [poolers_mode == "session"] * 2
        connections[alias].close()


@in_both_modes_of_ours
def test_prepared_statements_move_where_odyssey_reserves_them(
    server: EmbeddedServer, make_database: MakeDatabase, our_mode: Mode
) -> None:
    settings: dict[str, Any] = {"pool_reserve_prepared_statement": True, "pool_discard": False}
    with Odyssey(server, "transaction", **settings) as odyssey:
        options = {"server_side_binding": True, "prepare_threshold": 0}
        alias = make_database(server, options=options, pool_mode=our_mode)
        connections.settings[alias].update(HOST=odyssey.host, PORT=odyssey.port)
        sessions = set()
        with ExitStack() as stack:
            for number in range(3):
                with connections[alias].cursor() as cursor:
                    cursor.execute("SELECT %s::int, pg_backend_pid()", [number])
                    answer, session = cursor.fetchone()
                assert answer == number
                sessions.add(session)
                # Takes the session that was just used.
                other = stack.enter_context(psycopg.connect(**odyssey.parameters("postgres")))
                assert other.execute("SELECT pg_backend_pid()").fetchone() == (session,)
        assert len(sessions) == 3
        connections[alias].close()


def test_an_unknown_database_is_told_at_once(
    server: EmbeddedServer, make_pool_behind: MakePoolBehind
) -> None:
    with Odyssey(server, "transaction") as odyssey:
        pool = make_pool_behind(odyssey, parameters={"dbname": "nowhere"}, min_size=0)
        with pytest.raises(ConnectFailed, match="nowhere"):
            query(pool)


def test_behind_a_full_odyssey_a_pool_serves_waiters_from_what_it_has(
    server: EmbeddedServer, make_pool_behind: MakePoolBehind
) -> None:
    with Odyssey(server, "transaction", client_max=1) as odyssey:
        pool = make_pool_behind(odyssey, max_size=3)
        held = pool.checkout()
        with ThreadPoolExecutor(2) as threads:
            answers = [threads.submit(query, pool) for _ in range(2)]
            wait_until(lambda: pool.gauges().waiting == 2)
            wait_until(lambda: pool.snapshot().counters.connect_failures >= 1)
            pool.checkin(held)
            assert [answer.result(10.0) for answer in answers] == [42, 42]


def test_a_wait_for_a_session_that_is_too_long_is_raised_once_and_is_not_restarted(
    server: EmbeddedServer, make_ledger: Callable[..., Ledger]
) -> None:
    with Odyssey(server, "transaction", pool_size=1, pool_timeout=500) as odyssey:
        ledger = make_ledger(odyssey)
        with psycopg.connect(**odyssey.parameters("postgres")) as other:
            other.execute("SELECT 1")
            ledger.write()
        assert ledger.acknowledged == []
        (failure,) = ledger.failures
        assert "pool_size" in str(failure)
        ledger.write()
        assert ledger.rows == ledger.acknowledged


def test_the_check_sees_that_a_pooler_holds_the_sessions(
    server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    with Odyssey(server, "transaction") as odyssey:
        alias = make_database(server)
        connections.settings[alias].update(HOST=odyssey.host, PORT=odyssey.port)
        found = check_database_backends(databases=[alias])
    assert "django_pooled.W012" in {each.id for each in found if alias in each.msg}
