"""Several hosts, of which one is dead: by silence, by lost packets, by its name, by its role."""

from __future__ import annotations

import gc
import logging
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from statistics import median
from typing import TYPE_CHECKING, Any
from weakref import ref

import psycopg
import pytest

from django_pooled import deadline
from django_pooled.errors import CheckoutTimeout, ConnectFailed
from django_pooled.pool.host_memory import DELAY
from tests.servers.postgresql import backend_count, kill_backends, versions
from tests.servers.silent_hosts import SILENT_HOSTS
from tests.support.pools import query
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from django_pooled.pool.connection import PooledConnection
    from django_pooled.pool.pool import Pool
    from embedded_postgres import EmbeddedServer
    from tests.servers.fault_proxy import FaultProxy
    from tests.support.pools import MakePool

    MakeServer = Callable[..., EmbeddedServer]
    MakeProxy = Callable[[EmbeddedServer], FaultProxy]

LONG = 30
"""Seconds of connect_timeout that no test waits for."""


@pytest.fixture(params=SILENT_HOSTS)
def silent_port(request: pytest.FixtureRequest) -> Iterator[int]:
    """The port of a host that says nothing, in either way."""
    with SILENT_HOSTS[request.param]() as port:
        yield port


def listed(*ports: int, **more: Any) -> dict[str, Any]:
    return {
        "host": ",".join(["127.0.0.1"] * len(ports)),
        "port": ",".join(map(str, ports)),
        "connect_timeout": LONG,
        **more,
    }


def port_of(connection: psycopg.Connection[Any]) -> Any:
    row = connection.execute("SELECT inet_server_port()").fetchone()
    assert row is not None
    return row[0]


def port_behind(pool: Pool) -> Any:
    connection = pool.checkout()
    try:
        return port_of(connection)
    finally:
        pool.checkin(connection)


def execute(server: EmbeddedServer, statement: str) -> Any:
    with psycopg.connect(**server.parameters(), autocommit=True) as connection:
        cursor = connection.execute(statement)
        row = cursor.fetchone() if cursor.description else None
        return row[0] if row else None


def connect_anew(pool: Pool, number: int) -> list[float]:
    """Open so many connections one after another, and return the seconds that each took."""
    seconds = []
    for _ in range(number):
        connection = pool.checkout()
        connection.session.doom("for the test")
        pool.checkin(connection)
        del connection
        began = time.monotonic()
        assert query(pool) == 42
        seconds.append(time.monotonic() - began)
    return seconds


def events(caplog: pytest.LogCaptureFixture) -> list[Any]:
    return [getattr(record, "event", None) for record in caplog.records]


# A host that says nothing.


def test_a_silent_first_host_costs_a_moment_once(
    server: EmbeddedServer, make_pool: MakePool, silent_port: int
) -> None:
    parameters = listed(silent_port, server.port)
    pool = make_pool(server, min_size=0, timeout=5.0, parameters=parameters)
    began = time.monotonic()
    assert query(pool) == 42
    assert time.monotonic() - began < 4.0
    assert pool.snapshot().counters.connect_failures == 0


def test_requests_under_load_do_not_notice_a_silent_first_host(
    server: EmbeddedServer, make_pool: MakePool, silent_port: int
) -> None:
    parameters = listed(silent_port, server.port)
    options: dict[str, Any] = {"min_size": 0, "max_size": 8, "timeout": 5.0}
    pool = make_pool(server, parameters=parameters, **options)
    finished, served = threading.Event(), []

    def work() -> None:
        while not finished.is_set():
            served.append(query(pool))

    with ThreadPoolExecutor(16) as threads:
        workers = [threads.submit(work) for _ in range(16)]
        try:
            for _ in range(5):
                before = len(served)
                wait_until(lambda before=before: len(served) > before + 50)  # type: ignore[misc]
                kill_backends(server, "postgres")
        finally:
            finished.set()
        failures = [worker.exception(30) for worker in workers]
    # Those whose session was ended amid a query; none has waited in vain.
    assert not any(isinstance(failure, CheckoutTimeout) for failure in failures)
    assert pool.snapshot().counters.timeouts == 0


def test_once_remembered_connects_are_as_fast_as_to_the_good_host_alone(
    server: EmbeddedServer, make_pool: MakePool, silent_port: int
) -> None:
    alone = make_pool(server, max_size=1, parameters={"connect_timeout": LONG})
    both = make_pool(server, max_size=1, parameters=listed(silent_port, server.port))
    query(alone), query(both)
    # With a wait for the silent one, each would take that much longer.
    assert median(connect_anew(both, 15)) < median(connect_anew(alone, 15)) + 0.8 * DELAY


def test_no_thread_piles_up_for_a_silent_host(
    server: EmbeddedServer, make_pool: MakePool, silent_port: int
) -> None:
    pool = make_pool(server, max_size=1, parameters=listed(silent_port, server.port))
    query(pool)
    connect_anew(pool, 30)
    connects = [each for each in threading.enumerate() if each.name == "default-connects"]
    assert len(connects) <= 2


def test_a_host_that_answers_again_is_used_again(
    server: EmbeddedServer,
    make_proxy: MakeProxy,
    make_pool: MakePool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    proxy = make_proxy(server)
    proxy.deaf()
    pool = make_pool(
        server, max_size=1, parameters=listed(proxy.port, server.port, connect_timeout=2)
    )
    with caplog.at_level(logging.WARNING, "django_pooled.pool"):
        query(pool)
        proxy.forward()
        # Its last silence has to run out, and then it is tried beside the other.
        wait_until(lambda: (connect_anew(pool, 1), events(caplog))[1][1:], timeout=30)
    assert events(caplog) == ["host_failed", "host_serves"]


def test_a_slow_login_is_used_and_the_host_is_given_more_time_from_then_on(
    server: EmbeddedServer, make_proxy: MakeProxy, make_pool: MakePool
) -> None:
    proxy = make_proxy(server)
    proxy.delay(0.2)
    with socket.create_server(("127.0.0.1", 0)) as closed:
        refusing = closed.getsockname()[1]
    pool = make_pool(
        server, min_size=0, max_size=1, timeout=60.0, parameters=listed(refusing, proxy.port)
    )
    assert query(pool) == 42
    before = pool.snapshot().counters.connect_failures
    connect_anew(pool, 2)
    assert pool.snapshot().counters.connect_failures == before


def test_nothing_holds_a_connection_beside_its_user(
    server: EmbeddedServer, make_pool: MakePool, silent_port: int
) -> None:
    pool = make_pool(server, min_size=0, parameters=listed(silent_port, server.port))
    connection = pool.checkout()
    object_of_checkout = ref(connection)
    # Not by an attempt that still waits for the other host.
    holder = [connection]
    del connection
    gc.disable()
    try:
        pool.checkin_from(holder)
        wait_until(lambda: object_of_checkout() is None)
    finally:
        gc.enable()


# What each has said.


def test_the_timeout_has_the_answers_of_all_hosts(
    server: EmbeddedServer, make_proxy: MakeProxy, make_pool: MakePool, silent_port: int
) -> None:
    gone = make_proxy(server)
    gone.down()
    parameters = listed(silent_port, gone.port, server.port, password="wrong")
    pool = make_pool(server, min_size=0, timeout=4.0, parameters=parameters)
    with pytest.raises(CheckoutTimeout) as timeout:
        query(pool)
    told = str(timeout.value)
    assert f"port: '{silent_port}', hostaddr: '127.0.0.1': no answer" in told
    assert f"port: '{gone.port}'" in told
    assert "Connection refused" in told
    assert f"port: '{server.port}'" in told
    assert "password authentication failed" in told


def test_a_refusal_of_all_hosts_is_told_at_once(
    server: EmbeddedServer, make_proxy: MakeProxy, make_pool: MakePool
) -> None:
    parameters = listed(make_proxy(server).port, server.port, password="wrong")
    pool = make_pool(server, min_size=0, timeout=60.0, parameters=parameters)
    with pytest.raises(ConnectFailed, match=r"(?s)password authentication.*password authent"):
        query(pool)


def test_a_wrong_password_of_one_host_is_no_matter_while_another_serves(
    server: EmbeddedServer, make_server: MakeServer, make_pool: MakePool
) -> None:
    other = make_server()
    execute(other, "ALTER ROLE postgres PASSWORD 'another'")
    pool = make_pool(server, min_size=0, parameters=listed(other.port, server.port))
    assert port_behind(pool) == server.port


# Names.


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str] | Exception]:
    """Addresses by name, as a name server would give them."""
    known: dict[str, list[str] | Exception] = {}
    real = socket.getaddrinfo

    def getaddrinfo(host: Any, port: Any, *args: Any, **kwargs: Any) -> Any:
        if host not in known:
            return real(host, port, *args, **kwargs)
        found = known[host]
        if isinstance(found, Exception):
            raise found
        return [each for addr in found for each in real(addr, port, *args, **kwargs)]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return known


def test_of_several_addresses_of_a_name_the_one_that_serves_is_used(
    server: EmbeddedServer, make_pool: MakePool, names: dict[str, Any]
) -> None:
    # At 127.0.0.2 nothing listens; 192.0.2.1 is for documentation, and leads nowhere.
    names["db"] = ["192.0.2.1", "127.0.0.2", "127.0.0.1"]
    parameters = {"host": "db", "port": server.port, "connect_timeout": LONG}
    pool = make_pool(server, min_size=0, max_size=1, timeout=5.0, parameters=parameters)
    assert query(pool) == 42
    assert max(connect_anew(pool, 5)) < 4.0


def test_a_name_that_leads_elsewhere_is_followed_by_the_next_connection(
    server: EmbeddedServer, make_server: MakeServer, make_pool: MakePool, names: dict[str, Any]
) -> None:
    names["db"] = ["127.0.0.1"]
    pool = make_pool(server, max_size=1, parameters={"host": "db"})
    assert query(pool) == 42
    names["db"] = ["127.0.0.2"]
    connection = pool.checkout()
    connection.session.doom("for the test")
    pool.checkin(connection)
    del connection
    with pytest.raises(CheckoutTimeout, match=r"127\.0\.0\.2"), deadline(1.0):
        query(pool)


def test_a_resolver_that_fails_is_done_without(
    server: EmbeddedServer, make_pool: MakePool, names: dict[str, Any]
) -> None:
    names["db"] = ["127.0.0.1"]
    pool = make_pool(server, max_size=1, parameters={"host": "db"})
    assert query(pool) == 42
    names["db"] = socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
    connect_anew(pool, 3)
    assert pool.snapshot().counters.connect_failures == 0


def test_names_without_an_address_are_told_by_name(
    server: EmbeddedServer, make_pool: MakePool, names: dict[str, Any]
) -> None:
    for name in ("db1", "db2"):
        names[name] = socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
    pool = make_pool(server, min_size=0, timeout=1.0, parameters={"host": "db1,db2"})
    with pytest.raises(CheckoutTimeout) as timeout:
        query(pool)
    for name in ("db1", "db2"):
        assert f"failed to resolve host '{name}'" in str(timeout.value)


# Roles: a primary and a standby that change places.


@pytest.fixture
def pair(make_server: MakeServer) -> tuple[EmbeddedServer, EmbeddedServer]:
    primary = make_server(versions()[-1])
    return primary, make_server(primary=primary)


@pytest.mark.parametrize("end", ["kill", "silence"])
def test_after_a_failover_the_new_primary_is_found_within_the_backoff_s_rhythm(
    pair: tuple[EmbeddedServer, EmbeddedServer],
    make_proxy: MakeProxy,
    make_pool: MakePool,
    end: str,
) -> None:
    primary, standby = pair
    proxy = make_proxy(primary)
    parameters = listed(proxy.port, standby.port, target_session_attrs="read-write")
    pool = make_pool(primary, min_size=0, max_size=4, timeout=60.0, parameters=parameters)
    assert port_behind(pool) == primary.port
    if end == "silence":
        proxy.deaf()
        proxy.cut()
    primary.kill()
    with ThreadPoolExecutor(4) as threads:
        waiting = [threads.submit(port_behind, pool) for _ in range(4)]
        # All hosts are known to be of no use by now.
        wait_until(lambda: pool.snapshot().counters.connect_failures > 3)
        assert execute(standby, "SELECT pg_promote()") is True
        began = time.monotonic()
        assert [each.result(60) for each in waiting] == [standby.port] * 4
    # And not after connect_timeout.
    assert time.monotonic() - began < LONG / 3


def test_a_primary_that_comes_back_as_a_standby_is_left(
    pair: tuple[EmbeddedServer, EmbeddedServer], make_server: MakeServer, make_pool: MakePool
) -> None:
    primary, standby = pair
    parameters = listed(primary.port, standby.port, target_session_attrs="read-write")
    pool = make_pool(primary, min_size=0, max_size=3, timeout=60.0, parameters=parameters)
    assert port_behind(pool) == primary.port
    primary.kill()
    execute(standby, "SELECT pg_promote()")
    assert port_behind(pool) == standby.port
    back = make_server(primary=standby, port=primary.port)
    connect_anew(pool, 5)
    kill_backends(standby, "postgres")
    assert {port_behind(pool) for _ in range(3)} == {standby.port}
    wait_until(lambda: backend_count(back, "postgres") == 0)


def test_connections_to_a_server_that_turned_read_only_are_left_without_a_refused_write(
    make_server: MakeServer, make_pool: MakePool, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = make_server(versions()[-1]), make_server(versions()[-1])
    parameters = listed(first.port, second.port, target_session_attrs="read-write")
    pool = make_pool(first, max_size=3, min_size=0, timeout=60.0, parameters=parameters)
    held = [pool.checkout() for _ in range(3)]
    assert {port_of(connection) for connection in held} == {first.port}
    for connection in held:
        pool.checkin(connection)
    del connection
    held.clear()
    execute(first, "ALTER SYSTEM SET default_transaction_read_only = on")
    execute(first, "SELECT pg_reload_conf()")
    # A server tells it with the answer to a statement.
    with caplog.at_level(logging.WARNING, "django_pooled.pool"):
        wait_until(lambda: port_behind(pool) == second.port)
    assert "server_changed" in events(caplog)
    wait_until(lambda: backend_count(first, "postgres") == 0)
    assert pool.snapshot().counters.refused_writes == 0


def test_connections_to_a_standby_that_was_promoted_are_left_where_a_standby_is_asked_for(
    pair: tuple[EmbeddedServer, EmbeddedServer], make_server: MakeServer, make_pool: MakePool
) -> None:
    primary, standby = pair
    other = make_server(primary=primary)
    parameters = listed(standby.port, other.port, target_session_attrs="standby")
    pool = make_pool(primary, max_size=2, timeout=60.0, parameters=parameters)
    assert port_behind(pool) == standby.port
    execute(standby, "SELECT pg_promote()")
    wait_until(lambda: port_behind(pool) == other.port)


@pytest.mark.parametrize(
    ("target", "first"),
    [("any", True), ("primary", True), ("read-only", False), ("prefer-standby", False)],
)
def test_each_kind_of_server_can_be_asked_for(
    pair: tuple[EmbeddedServer, EmbeddedServer], make_pool: MakePool, target: str, first: bool
) -> None:
    primary, standby = pair
    parameters = listed(primary.port, standby.port, target_session_attrs=target)
    pool = make_pool(primary, min_size=0, max_size=1, parameters=parameters)
    query(pool)
    expected = primary.port if first else standby.port
    # Where the preferred one is slow to answer, another may serve for a while.
    wait_until(lambda: (connect_anew(pool, 1), port_behind(pool))[1] == expected, timeout=60)


def test_where_a_standby_is_preferred_the_primary_will_do(
    pair: tuple[EmbeddedServer, EmbeddedServer], make_pool: MakePool
) -> None:
    primary, standby = pair
    parameters = listed(standby.port, primary.port, target_session_attrs="prefer-standby")
    pool = make_pool(primary, min_size=0, max_size=1, timeout=60.0, parameters=parameters)
    assert port_behind(pool) == standby.port
    standby.stop()
    assert port_behind(pool) == primary.port
    standby.start()
    wait_until(lambda: (connect_anew(pool, 1), port_behind(pool))[1] == standby.port, timeout=60)


def test_connections_are_spread_over_hosts_and_a_dead_one_is_left_out(
    server: EmbeddedServer, make_server: MakeServer, make_pool: MakePool, silent_port: int
) -> None:
    other = make_server()
    execute(other, f"ALTER ROLE {server.user} PASSWORD '{server.password}'")
    parameters = listed(silent_port, server.port, other.port, load_balance_hosts="random")
    pool = make_pool(server, min_size=0, max_size=1, timeout=5.0, parameters=parameters)
    seen = set()

    def both() -> bool:
        connection = pool.checkout()
        seen.add(port_of(connection))
        connection.session.doom("for the test")
        pool.checkin(connection)
        return seen == {server.port, other.port}

    wait_until(both)
    assert pool.snapshot().counters.timeouts == 0


def test_a_login_that_comes_after_all_is_used_where_the_others_have_refused(
    pair: tuple[EmbeddedServer, EmbeddedServer], make_proxy: MakeProxy, make_pool: MakePool
) -> None:
    primary, standby = pair
    configured: list[int] = []

    def configure(connection: PooledConnection) -> None:
        configured.append(connection.info.backend_pid)

    slow = make_proxy(primary)
    slow.delay(1.0)
    parameters = listed(slow.port, standby.port, target_session_attrs="read-write")
    pool = make_pool(
        primary,
        min_size=0,
        max_size=1,
        timeout=60.0,
        parameters=parameters,
        configure=configure,
        backoff={"initial": 60.0, "maximum": 60.0, "jitter": False},
    )
    # The attempt has failed before, and the next one is a minute away.
    assert port_behind(pool) == primary.port
    assert pool.snapshot().counters.connect_failures >= 1
    assert len(set(configured)) == 1
