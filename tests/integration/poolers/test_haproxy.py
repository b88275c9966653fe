"""HAProxy between the pool and servers: what it cuts, and whom it leads to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from django.core.management import call_command
from django.db import connections

from django_pooled.errors import CheckoutTimeout
from tests.servers.haproxy import PROGRAM, HAProxy
from tests.servers.postgresql import backend_pids, kill_backends
from tests.support.ledger import THREADS, Ledger
from tests.support.pools import fill, query
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from django_pooled.pool.pool import Pool
    from embedded_postgres import EmbeddedServer
    from tests.support.pools import MakeDatabase, MakePool

    MakeServer = Callable[..., EmbeddedServer]

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="HAProxy is not installed")


def through(haproxy: HAProxy, **more: Any) -> dict[str, Any]:
    return {"host": haproxy.host, "port": haproxy.port, **more}


def port_behind(pool: Pool) -> Any:
    connection = pool.checkout()
    try:
        row = connection.execute("SELECT inet_server_port()").fetchone()
        assert row is not None
        return row[0]
    finally:
        pool.checkin(connection)


def leads_to(parameters: dict[str, Any]) -> Any:
    with psycopg.connect(**parameters) as connection:
        (port,) = connection.execute("SELECT inet_server_port()").fetchone() or (None,)
        return port


def promote(server: EmbeddedServer) -> None:
    with psycopg.connect(**server.parameters(), autocommit=True) as operator:
        assert operator.execute("SELECT pg_promote()").fetchone() == (True,)


def synchronous(primary: EmbeddedServer, standby: EmbeddedServer) -> None:
    """Have a COMMIT answered only once the standby has it."""
    with psycopg.connect(**primary.parameters(), autocommit=True) as operator:
        operator.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
        operator.execute("SELECT pg_reload_conf()")
        state = "SELECT sync_state FROM pg_stat_replication"
        wait_until(lambda: operator.execute(state).fetchone() == ("sync",))


def test_connections_that_are_cut_while_idle_fail_no_checkout(
    private_server: EmbeddedServer, make_pool: MakePool
) -> None:
    with HAProxy(private_server, idle="300ms") as haproxy:
        pool = make_pool(private_server, parameters=through(haproxy), max_size=2)
        fill(pool, 2)
        wait_until(lambda: not backend_pids(private_server, "postgres"))
        assert query(pool) == 42
        assert pool.snapshot().counters.closed["dead"] == 2


def test_a_statement_that_is_silent_for_longer_than_the_limit_loses_its_connection(
    private_server: EmbeddedServer, make_pool: MakePool
) -> None:
    with HAProxy(private_server, idle="500ms") as haproxy:
        pool = make_pool(private_server, parameters=through(haproxy))
        connection = pool.checkout()
        # TCP keepalives do not count as traffic.
        with pytest.raises(psycopg.OperationalError, match="closed the connection"):
            connection.execute("SELECT pg_sleep(20)")
        pool.checkin(connection)
        assert query(pool) == 42


def test_without_a_server_behind_it_a_checkout_waits_for_one(
    make_server: MakeServer, make_pool: MakePool
) -> None:
    server = make_server()
    with HAProxy(server) as haproxy:
        pool = make_pool(server, parameters=through(haproxy), min_size=0, timeout=1.0)
        server.stop("fast")
        # It accepts, and closes at once.
        with pytest.raises(CheckoutTimeout):
            query(pool)
        patient = make_pool(server, parameters=through(haproxy), timeout=30.0)
        wait_until(lambda: patient.snapshot().counters.connect_failures >= 2)
        server.start()
        assert query(patient) == 42


def test_where_it_knows_no_roles_target_session_attrs_finds_the_primary(
    make_server: MakeServer, make_pool: MakePool
) -> None:
    primary = make_server()
    standby = make_server(primary=primary)
    with HAProxy(standby, primary) as haproxy:
        wanted = through(haproxy, target_session_attrs="read-write")
        pool = make_pool(primary, parameters=wanted, min_size=0, max_size=4)
        for _ in range(4):
            assert port_behind(pool) == primary.port
            kill_backends(primary, "postgres")


@pytest.mark.parametrize("our_mode", ["session", "transaction"])
def test_a_failover_behind_it_fails_no_decorated_call(
    make_server: MakeServer, make_database: MakeDatabase, our_mode: str
) -> None:
    primary = make_server()
    standby = make_server(primary=primary)
    synchronous(primary, standby)
    with HAProxy(primary, standby, by_role=True) as haproxy:
        alias = make_database(primary, pool_mode=our_mode, max_size=THREADS, timeout=30.0)
        connections.settings[alias]["PORT"] = haproxy.port
        call_command("migrate", "django_pooled_tokens", database=alias, verbosity=0)
        ledger = Ledger(alias, primary)
        with ledger.load(commit_check="token"):
            primary.kill()
            promote(standby)
            ledger.server = standby
        assert ledger.failures == []
        assert ledger.rows == sorted(ledger.acknowledged)


@pytest.mark.parametrize("cuts", [True, False], ids=["shutdown-sessions", "by default"])
def test_a_session_stays_on_a_server_that_is_fit_no_more_unless_it_is_cut(
    make_server: MakeServer, make_pool: MakePool, *, cuts: bool
) -> None:
    primary = make_server()
    standby = make_server(primary=primary)
    option = "on-marked-down shutdown-sessions" if cuts else ""
    with HAProxy(primary, standby, by_role=True, on_marked_down=option) as haproxy:
        pool = make_pool(primary, parameters=through(haproxy), timeout=30.0)
        assert port_behind(pool) == primary.port
        promote(standby)
        # The old primary is there still, and takes writes; Patroni says that it is none.
        haproxy.roles[0].withdrawn = True
        newcomer = {**primary.parameters("postgres"), **through(haproxy)}
        # It takes them in turn: both fit, and one would be the primary.
        wait_until(lambda: leads_to(newcomer) == leads_to(newcomer) == standby.port)
        assert port_behind(pool) == (standby.port if cuts else primary.port)
