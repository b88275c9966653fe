"""Servers that say nothing: addresses that swallow packets, sessions whose other end is gone."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from django_pooled.errors import CheckoutTimeout
from tests.servers.postgresql import backend_pids, stopped
from tests.support.pools import fill, query
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from django_pooled.pool.connection import PooledConnection
    from django_pooled.pool.pool import Pool
    from embedded_postgres import EmbeddedServer
    from tests.servers.fault_proxy import FaultProxy
    from tests.servers.postgresql import Servers
    from tests.support.pools import MakePool

LONG = 60.0
"""Seconds that no test waits for."""

SLACK = 3.0
"""Seconds that a bound may be exceeded by on a machine that is busy with something else."""


class Stopwatch:
    """Seconds from its making on."""

    def __init__(self) -> None:
        self._started = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started


# A server that accepts and never answers.


def test_a_silent_server_ends_a_checkout_with_the_expired_connect_timeout_as_its_cause(
    server: EmbeddedServer, proxy: FaultProxy, make_pool: MakePool
) -> None:
    proxy.deaf()
    pool = make_pool(
        server, through=proxy, min_size=0, timeout=4.0, parameters={"connect_timeout": 2}
    )
    watch = Stopwatch()
    with pytest.raises(CheckoutTimeout, match="timeout expired") as timeout:
        pool.checkout()
    assert watch.seconds < 4.0 + SLACK
    assert isinstance(timeout.value.__cause__, psycopg.OperationalError)


def test_a_checkout_shorter_than_connect_timeout_says_that_it_waited_for_an_answer(
    server: EmbeddedServer, proxy: FaultProxy, make_pool: MakePool
) -> None:
    proxy.deaf()
    pool = make_pool(
        server, through=proxy, min_size=0, timeout=0.5, parameters={"connect_timeout": 30}
    )
    watch = Stopwatch()
    with pytest.raises(CheckoutTimeout, match="1 being opened, without an answer"):
        pool.checkout()
    assert watch.seconds < 0.5 + SLACK


def test_a_waiter_is_served_when_a_silent_server_answers_again(
    server: EmbeddedServer, proxy: FaultProxy, make_pool: MakePool
) -> None:
    proxy.deaf()
    pool = make_pool(
        server, through=proxy, min_size=0, timeout=1.0, parameters={"connect_timeout": 2}
    )
    with pytest.raises(CheckoutTimeout):
        pool.checkout()
    proxy.forward()
    # The attempt that the silence swallowed has to run out first.
    watch = Stopwatch()
    assert wait_until(lambda: query(pool), timeout=20) == 42
    assert watch.seconds < 2.0 + SLACK


# Sessions whose server has stopped, while new ones are answered.


@pytest.mark.skipif(sys.platform == "win32", reason="processes cannot be stopped there")
def test_waiters_are_served_at_once_when_a_server_that_hung_goes_on(
    own_server: EmbeddedServer, make_pool: MakePool
) -> None:
    # The kernel accepts for it meanwhile, so each attempt hangs without an error.
    pool = make_pool(
        own_server, min_size=0, max_size=3, timeout=60.0, parameters={"connect_timeout": 60}
    )
    with ThreadPoolExecutor(6) as threads:
        with stopped([own_server.pid]):
            answers = [threads.submit(query, pool) for _ in range(6)]
            wait_until(lambda: pool.snapshot().connecting == 3)
            time.sleep(1.0)  # The time for which it hangs.
            assert pool.gauges().waiting == 6
        watch = Stopwatch()
        assert [answer.result(30) for answer in answers] == [42] * 6
    assert watch.seconds < SLACK
    assert pool.snapshot().counters.connect_failures == 0


@pytest.mark.skipif(sys.platform == "win32", reason="processes cannot be stopped there")
@pytest.mark.parametrize(("number", "check_timeout"), [(1, 0.5), (8, 1.0)], ids=["one", "many"])
def test_silent_idle_connections_cost_one_check_timeout(
    own_server: EmbeddedServer, make_pool: MakePool, number: int, check_timeout: float
) -> None:
    pool = make_pool(own_server, max_size=number, check_after=0.0, check_timeout=check_timeout)
    fill(pool, number)
    with stopped(backend_pids(own_server, "postgres")):
        watch = Stopwatch()
        assert query(pool) == 42
        assert check_timeout <= watch.seconds < check_timeout + SLACK
        assert pool.snapshot().counters.closed["dead"] == number


def test_a_silent_idle_connection_never_outlasts_the_checkout_s_own_timeout(
    server: EmbeddedServer, proxy: FaultProxy, make_pool: MakePool
) -> None:
    pool = make_pool(server, through=proxy, check_after=0.0, check_timeout=60.0, timeout=0.5)
    query(pool)
    proxy.freeze()
    watch = Stopwatch()
    with pytest.raises(CheckoutTimeout):
        pool.checkout()
    assert watch.seconds < 0.5 + SLACK
    proxy.forward()


# Lost packets: two hosts, each a network namespace, one of which stops sending.


class Network:
    """A client's and a server's host, joined by a cable; the running thread changes between them.

    The server's host can drop all that it would send, acknowledgements included.
    """

    client_address, server_address = "10.213.0.1", "10.213.0.2"

    def __init__(self) -> None:
        self.client, self.server = f"pooled-c-{os.getpid()}", f"pooled-s-{os.getpid()}"
        try:
            for namespace in (self.client, self.server):
                ip("netns", "add", namespace)
                ip("-n", namespace, "link", "set", "lo", "up")
            ip(
                *("-n", self.client, "link", "add", "cable", "type", "veth"),
                *("peer", "name", "cable", "netns", self.server),
            )
            for namespace, address in (
                (self.client, self.client_address),
                (self.server, self.server_address),
            ):
                ip("-n", namespace, "addr", "add", f"{address}/30", "dev", "cable")
                ip("-n", namespace, "link", "set", "cable", "up")
        except BaseException:
            self.close()
            raise

    @contextlib.contextmanager
    def on(self, namespace: str) -> Iterator[None]:
        """Put the running thread, and all that it starts, on one of the hosts."""
        with open("/proc/thread-self/ns/net") as here, open(f"/run/netns/{namespace}") as there:
            enter(there.fileno())
            try:
                yield
            finally:
                enter(here.fileno())

    def lose_packets(self) -> None:
        ip("-n", self.server, "route", "add", "blackhole", f"{self.client_address}/32")

    def deliver_packets(self) -> None:
        ip("-n", self.server, "route", "del", "blackhole", f"{self.client_address}/32")

    def forget(self, port: int) -> None:
        """Lose what is sent to one port of the client's host, as a NAT that knows it no more."""
        ip("-n", self.server, "rule", "add", "ipproto", "tcp", "dport", str(port), "blackhole")

    def close(self) -> None:
        for namespace in (self.client, self.server):
            if Path("/run/netns", namespace).exists():
                ip("netns", "delete", namespace)


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=30)


def enter(namespace: int) -> None:
    if ctypes.CDLL(None, use_errno=True).setns(namespace, 0x40000000):  # CLONE_NEWNET
        raise OSError(ctypes.get_errno(), "setns")


@pytest.fixture
def network() -> Iterator[Network]:
    """Two hosts of the test's own."""
    if sys.platform != "linux" or shutil.which("ip") is None:
        pytest.skip("needs Linux and iproute2")
    with contextlib.ExitStack() as stack:
        try:
            made = Network()
            stack.callback(made.close)
            with made.on(made.server), made.on(made.client):
                pass
        except (subprocess.CalledProcessError, OSError) as error:
            said = getattr(error, "stderr", None) or str(error).encode()
            pytest.skip(f"network namespaces cannot be made here: {said.decode().strip()}")
        yield made


@pytest.fixture
def distant_server(network: Network, servers: Servers) -> Iterator[EmbeddedServer]:
    """A server on the server's host; the test's own thread is on the client's."""
    made = servers.make(settings={"listen_addresses": f"127.0.0.1,{network.server_address}"})
    made.prepare()
    with (made.data / "pg_hba.conf").open("a") as rules:
        rules.write(f"host all all {network.client_address}/32 scram-sha-256\n")
    with network.on(network.server):
        made.start()
    try:
        with network.on(network.client):
            yield made
    finally:
        servers.remove(made)


@pytest.fixture
def make_distant_pool(
    distant_server: EmbeddedServer, network: Network, make_pool: MakePool
) -> Callable[..., Pool]:
    """Make pools whose packets can get lost."""

    def make(tcp: dict[str, int], **options: Any) -> Pool:
        parameters = {"host": network.server_address, "connect_timeout": 2, **tcp}
        return make_pool(distant_server, parameters=parameters, **options)

    return make


def lost(connection: PooledConnection, statement: str) -> float:
    """Execute a statement that has to end in a lost connection; return after how many seconds."""
    watch = Stopwatch()
    with pytest.raises(psycopg.OperationalError):
        connection.execute(statement)
    return watch.seconds


def test_tcp_user_timeout_ends_a_write_whose_packets_get_lost(
    network: Network, make_distant_pool: Callable[..., Pool]
) -> None:
    pool = make_distant_pool({"tcp_user_timeout": 2000})
    connection = pool.checkout()
    network.lose_packets()
    seconds = lost(connection, "SELECT 1")
    pool.checkin(connection)
    # Without it, the kernel would send again for some 15 minutes.
    assert 1.5 < seconds < 2.0 + 2 * SLACK
    network.deliver_packets()
    assert wait_until(lambda: query(pool), timeout=20) == 42
    assert pool.snapshot().counters.discarded == 1


@pytest.mark.parametrize(
    "tcp",
    [
        {"keepalives_idle": 1, "keepalives_interval": 1, "keepalives_count": 2},
        {"keepalives_idle": 1, "keepalives_interval": 1, "tcp_user_timeout": 2000},
    ],
    ids=["keepalives_count", "tcp_user_timeout"],
)
def test_keepalives_end_a_wait_for_an_answer_that_gets_lost(
    network: Network,
    make_distant_pool: Callable[..., Pool],
    distant_server: EmbeddedServer,
    tcp: dict[str, int],
) -> None:
    pool = make_distant_pool(tcp)
    connection = pool.checkout()
    connection.execute("SET application_name TO 'sleeper'")
    timer = subprocess.Popen(
        # The server acknowledges the query first, so that nothing is left to be sent again.
        f"sleep 1; exec ip -n {network.server} route add blackhole {network.client_address}/32",
        shell=True,
    )
    try:
        seconds = lost(connection, "SELECT pg_sleep(100)")
    finally:
        assert timer.wait(30) == 0
    pool.checkin(connection)
    assert 2.0 < seconds < 4.0 + 2 * SLACK
    network.deliver_packets()
    assert wait_until(lambda: query(pool), timeout=20) == 42


def test_an_idle_connection_whose_packets_get_lost_is_found_within_check_timeout(
    network: Network, make_distant_pool: Callable[..., Pool]
) -> None:
    pool = make_distant_pool({}, check_after=0.0, check_timeout=0.5, timeout=3.0, max_size=4)
    fill(pool, 4)
    network.lose_packets()
    watch = Stopwatch()
    with pytest.raises(CheckoutTimeout, match="timeout expired"):
        pool.checkout()
    assert watch.seconds < 3.0 + SLACK
    network.deliver_packets()
    watch = Stopwatch()
    assert wait_until(lambda: query(pool), timeout=20) == 42
    assert watch.seconds < 2.0 + SLACK


def test_a_connect_whose_packets_get_lost_ends_with_connect_timeout(
    network: Network, make_distant_pool: Callable[..., Pool]
) -> None:
    network.lose_packets()
    pool = make_distant_pool({}, min_size=0, timeout=3.5)
    with pytest.raises(CheckoutTimeout, match="timeout expired"):
        pool.checkout()
    network.deliver_packets()
    assert wait_until(lambda: query(pool), timeout=20) == 42


# A load balancer or NAT that forgets one flow, and serves others.


def client_port(connection: PooledConnection) -> int:
    with socket.socket(fileno=os.dup(connection.fileno())) as copy:
        port: int = copy.getsockname()[1]
    return port


def forget_idle(pool: Pool, network: Network) -> None:
    for connection in pool._pool.idle_connections:
        network.forget(client_port(connection))


def test_keepalives_find_a_forgotten_flow_before_a_request_does(
    network: Network, make_distant_pool: Callable[..., Pool]
) -> None:
    tcp = {"keepalives_idle": 1, "keepalives_interval": 1, "keepalives_count": 2}
    pool = make_distant_pool(tcp, max_size=3, check_timeout=LONG)
    fill(pool, 3)
    forget_idle(pool, network)
    idle = pool._pool.idle_connections
    wait_until(lambda: all(each.session.is_readable() for each in idle))
    # Seen on the sockets: no check had to wait.
    watch = Stopwatch()
    assert query(pool) == 42
    assert watch.seconds < LONG
    assert pool.snapshot().counters.closed["dead"] == 3


def test_a_checkout_after_check_after_finds_a_forgotten_flow_and_is_served_by_another(
    network: Network, make_distant_pool: Callable[..., Pool]
) -> None:
    pool = make_distant_pool({}, max_size=3, check_after=0.0, check_timeout=0.5)
    fill(pool, 3)
    forget_idle(pool, network)
    watch = Stopwatch()
    assert query(pool) == 42
    assert 0.5 <= watch.seconds < 0.5 + 2 * SLACK
    assert pool.snapshot().counters.closed["dead"] == 3


def test_a_statement_on_a_forgotten_flow_ends_with_tcp_user_timeout(
    network: Network, make_distant_pool: Callable[..., Pool]
) -> None:
    pool = make_distant_pool({"tcp_user_timeout": 2000})
    connection = pool.checkout()
    network.forget(client_port(connection))
    assert 1.5 < lost(connection, "SELECT 1") < 2.0 + 2 * SLACK
    pool.checkin(connection)
    del connection
    assert query(pool) == 42
