"""A real primary, its streaming standby, and the promotion that makes one the other."""

from __future__ import annotations

import threading
import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from django.db import InternalError, close_old_connections, connections

from django_pooled import AmbiguousCommit, Backoff, registry, retry_transaction
from django_pooled.errors import CheckoutTimeout, PoolError
from tests.servers.postgresql import backend_count, kill_backends, versions
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from django_pooled.pool.pool import Pool
    from embedded_postgres import EmbeddedServer
    from tests.servers.fault_proxy import FaultProxy
    from tests.support.pools import MakeDatabase, MakePool

    MakeServer = Callable[..., EmbeddedServer]
    Pair = tuple[EmbeddedServer, EmbeddedServer]

QUICK = Backoff(initial=0.01, maximum=0.1)


@pytest.fixture(params=versions(), ids=lambda version: f"postgresql{version}")
def pair(request: pytest.FixtureRequest, make_server: MakeServer) -> Pair:
    """A primary and its standby, once of the oldest and once of the newest version."""
    return make_pair(make_server, request.param)


@pytest.fixture
def new_pair(make_server: MakeServer) -> Pair:
    """A primary and its standby of the newest version."""
    return make_pair(make_server, versions()[-1])


def make_pair(make_server: MakeServer, version: str) -> Pair:
    primary = make_server(version)
    return primary, make_server(primary=primary)


def execute(server: EmbeddedServer, statement: str) -> Any:
    """Have the server itself execute a statement, and return the first value of its answer."""
    with psycopg.connect(**server.parameters(), autocommit=True) as connection:
        cursor = connection.execute(statement)
        row = cursor.fetchone() if cursor.description else None
        return row[0] if row else None


def promote(server: EmbeddedServer) -> None:
    assert execute(server, "SELECT pg_promote()") is True


def replicate_synchronously(primary: EmbeddedServer) -> None:
    """Have a COMMIT answered only once the standby has it."""
    execute(primary, "ALTER SYSTEM SET synchronous_standby_names = '*'")
    execute(primary, "SELECT pg_reload_conf()")
    state = "SELECT sync_state FROM pg_stat_replication"
    wait_until(lambda: execute(primary, state) == "sync")


def addresses(*servers: EmbeddedServer) -> dict[str, str]:
    """Return libpq's parameters for several hosts, of which the one that can write is wanted."""
    return {
        "host": ",".join(server.host for server in servers),
        "port": ",".join(str(server.port) for server in servers),
        "target_session_attrs": "read-write",
    }


def on_hosts(make_database: MakeDatabase, *servers: EmbeddedServer, **pool: Any) -> str:
    """Make an alias whose HOST and PORT name several servers, as a project writes it."""
    parameters = addresses(*servers)
    options = {"target_session_attrs": parameters["target_session_attrs"]}
    alias = make_database(servers[0], options=options, **pool)
    connections.settings[alias].update(HOST=parameters["host"], PORT=parameters["port"])
    return alias


def port_of(connection: psycopg.Connection[Any]) -> Any:
    row = connection.execute("SELECT inet_server_port()").fetchone()
    assert row is not None
    return row[0]


def ports_of_all(pool: Pool) -> set[int]:
    """Take every connection that the pool may have, at once, and ask where it leads to."""
    held = [pool.checkout() for _ in range(pool.options.max_size)]
    try:
        return {port_of(connection) for connection in held}
    finally:
        for connection in held:
            pool.checkin(connection)


def write(alias: str, statement: str, *parameters: Any) -> None:
    with connections[alias].cursor() as cursor:
        cursor.execute(statement, parameters)


def discarded(alias: str) -> int:
    return sum(
        sum(pool.counters.closed.values()) for pool in registry.snapshots() if pool.alias == alias
    )


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_after_a_promotion_under_load_every_connection_leads_to_the_new_primary(
    new_pair: Pair, make_pool: MakePool, make_server: MakeServer, end: str
) -> None:
    primary, standby = new_pair
    pool = make_pool(primary, parameters=addresses(primary, standby), max_size=6, timeout=30.0)
    assert ports_of_all(pool) == {primary.port}
    finished = threading.Event()
    served: Counter[int] = Counter()
    refused: list[PoolError] = []
    broken: list[psycopg.Error] = []

    def work() -> None:
        while not finished.is_set():
            try:
                connection = pool.checkout()
            except PoolError as error:
                refused.append(error)
                continue
            try:
                served[port_of(connection)] += 1
            except psycopg.Error as error:
                broken.append(error)
            finally:
                pool.checkin(connection)

    with ThreadPoolExecutor(12) as threads:
        workers = [threads.submit(work) for _ in range(12)]
        try:
            wait_until(lambda: served[primary.port] > 100)
            primary.stop() if end == "stop" else primary.kill()
            promote(standby)
            wait_until(lambda: served[standby.port] > 200)
        finally:
            finished.set()
        for worker in workers:
            worker.result(30)
    assert refused == []
    # What was on its way when the primary went, and the one checkout before that was noticed.
    assert len(broken) <= 2 * 6
    assert ports_of_all(pool) == {standby.port}

    # The old primary comes back as the standby of the new one, and is the first host to be tried.
    make_server(primary=standby, port=primary.port)
    assert kill_backends(standby, "postgres") > 0
    assert ports_of_all(pool) == {standby.port}


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_a_failover_loses_no_acknowledged_transaction_and_doubles_none(
    pair: Pair, make_database: MakeDatabase, end: str
) -> None:
    primary, standby = pair
    execute(primary, "CREATE TABLE tally (worker int PRIMARY KEY, value int)")
    execute(primary, "INSERT INTO tally SELECT n, 0 FROM generate_series(0, 5) n")
    # No unique constraint: what ran twice has to show.
    execute(primary, "CREATE TABLE done (key uuid, worker int)")
    replicate_synchronously(primary)
    alias = on_hosts(make_database, primary, standby, max_size=4, timeout=30.0)

    @retry_transaction(using=alias, deadline=60.0, backoff=QUICK)
    def increment(key: uuid.UUID, worker: int) -> None:
        write(alias, "UPDATE tally SET value = value + 1 WHERE worker = %s", worker)
        write(alias, "INSERT INTO done VALUES (%s, %s)", key, worker)

    finished = threading.Event()
    acknowledged: set[uuid.UUID] = set()
    ambiguous: set[uuid.UUID] = set()
    failed: list[Exception] = []

    def work(worker: int) -> None:
        try:
            while not finished.is_set():
                key = uuid.uuid4()
                try:
                    increment(key, worker)
                except AmbiguousCommit:
                    ambiguous.add(key)
                except Exception as error:
                    failed.append(error)
                else:
                    acknowledged.add(key)
        finally:
            connections[alias].close()

    with ThreadPoolExecutor(6) as threads:
        workers = [threads.submit(work, number) for number in range(6)]
        try:
            wait_until(lambda: len(acknowledged) > 60)
            primary.stop() if end == "stop" else primary.kill()
            promote(standby)
            before = len(acknowledged)
            wait_until(lambda: len(acknowledged) > before + 60, timeout=30)
        finally:
            finished.set()
        for one in workers:
            one.result(60)

    with psycopg.connect(**standby.parameters()) as connection:
        stored = Counter(key for (key,) in connection.execute("SELECT key FROM done"))
        total = connection.execute("SELECT sum(value) FROM tally").fetchone()
    assert failed == []
    assert acknowledged - stored.keys() == set()
    assert stored.keys() - acknowledged <= ambiguous
    assert {key for key, times in stored.items() if times > 1} == set()
    assert total == (len(stored),)
    # Only a COMMIT that was on its way can be ambiguous, and each thread had at most one.
    assert len(ambiguous) <= 6


def test_a_hot_standby_loses_all_its_connections_at_the_first_refused_write(
    new_pair: Pair, make_proxy: Callable[[EmbeddedServer], FaultProxy], make_database: MakeDatabase
) -> None:
    primary, standby = new_pair
    execute(primary, "CREATE TABLE letters (letter text)")
    proxy = make_proxy(standby)
    alias = make_database(standby, through=proxy, max_size=3)
    pool = connections[alias].pool  # type: ignore[attr-defined]
    wait_until(lambda: execute(standby, "SELECT to_regclass('letters') IS NOT NULL"))
    assert ports_of_all(pool) == {standby.port}
    # The address now leads to the primary; the three connections still lead to the standby.
    proxy.retarget(primary.host, primary.port)
    with pytest.raises(InternalError, match="read-only transaction"):
        write(alias, "INSERT INTO letters VALUES ('a')")
    close_old_connections()
    assert discarded(alias) == 3
    wait_until(lambda: backend_count(standby, "postgres") == 0)
    write(alias, "INSERT INTO letters VALUES ('b')")
    close_old_connections()
    assert ports_of_all(pool) == {primary.port}


def test_retry_transaction_gets_over_a_standby_behind_its_address(
    new_pair: Pair, make_proxy: Callable[[EmbeddedServer], FaultProxy], make_database: MakeDatabase
) -> None:
    primary, standby = new_pair
    execute(primary, "CREATE TABLE letters (letter text)")
    wait_until(lambda: execute(standby, "SELECT to_regclass('letters') IS NOT NULL"))
    proxy = make_proxy(standby)
    alias = make_database(standby, through=proxy, max_size=3)
    assert ports_of_all(connections[alias].pool) == {standby.port}  # type: ignore[attr-defined]
    proxy.retarget(primary.host, primary.port)
    insert = partial(write, alias, "INSERT INTO letters VALUES ('a')")
    retry_transaction(using=alias, backoff=QUICK)(insert)()
    connections[alias].close()
    assert execute(primary, "SELECT count(*) FROM letters") == 1


def test_reading_from_a_standby_costs_no_connection(new_pair: Pair, make_pool: MakePool) -> None:
    pool = make_pool(new_pair[1], max_size=2)
    for _ in range(3):
        assert ports_of_all(pool) == {new_pair[1].port}
    snapshot = pool.snapshot()
    assert (snapshot.counters.connects, snapshot.counters.closed["dead"]) == (2, 0)


@pytest.mark.parametrize("old_primary", ["stopped", "read-only"])
def test_waiters_outlast_the_time_in_which_every_host_is_read_only(
    new_pair: Pair, make_pool: MakePool, old_primary: str
) -> None:
    primary, standby = new_pair
    if old_primary == "stopped":
        primary.stop()
    else:
        execute(primary, "ALTER SYSTEM SET default_transaction_read_only = on")
        execute(primary, "SELECT pg_reload_conf()")
        wait_until(lambda: execute(primary, "SHOW default_transaction_read_only") == "on")
    pool = make_pool(
        standby, parameters=addresses(standby, primary), max_size=2, min_size=0, timeout=30.0
    )

    def ask() -> Any:
        connection = pool.checkout()
        try:
            return port_of(connection)
        finally:
            pool.checkin(connection)

    with ThreadPoolExecutor(6) as threads:
        answers = [threads.submit(ask) for _ in range(6)]
        wait_until(lambda: pool.snapshot().counters.connect_failures > 3)
        assert pool.gauges().waiting == 6
        assert "read-only" in (pool.snapshot().last_error or "")
        promote(standby)
        assert [answer.result(30) for answer in answers] == [standby.port] * 6


def test_the_timeout_names_each_host_and_why_it_would_not_do(
    new_pair: Pair, make_pool: MakePool
) -> None:
    primary, standby = new_pair
    primary.stop()
    pool = make_pool(
        primary, parameters=addresses(primary, standby), min_size=0, max_size=2, timeout=1.0
    )
    with pytest.raises(CheckoutTimeout, match="session is read-only") as timeout:
        pool.checkout()
    assert f"port: '{primary.port}'" in str(timeout.value)
    assert "Connection refused" in str(timeout.value)
    assert f"port: '{standby.port}'" in str(timeout.value)
