"""Processes that are stopped between two requests, as serverless platforms do, and go on later."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from django.db import connection, connections

from django_pooled import registry
from tests.servers.postgresql import backend_pids
from tests.sites.workers import running
from tests.support.threads import at_once
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from embedded_postgres import EmbeddedServer
    from tests.servers.fault_proxy import FaultProxy
    from tests.support.pools import MakePool

needs_signals = pytest.mark.skipif(
    not hasattr(signal, "SIGSTOP"), reason="processes cannot be stopped there"
)
IDLE = 6
"""Connections that are idle when the process is stopped."""


# What runs in the worker's process.


def work() -> None:
    """Answer one request per line of standard input, with a line of figures each."""
    for line in sys.stdin:
        request = json.loads(line)
        answer = {"fill": fill, "ask": ask, "connect": connect}[request]()
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def fill() -> int:
    """Have several connections idle; return how many."""
    pool = connections["default"].pool  # type: ignore[attr-defined]
    held = [pool.checkout() for _ in range(IDLE)]
    for one in held:
        pool.checkin(one)
    return int(pool.gauges().idle)


def ask() -> dict[str, Any]:
    """Do what a request does, and return how long it took and what the pool counted."""
    started = time.monotonic()
    with connection.cursor() as cursor:
        cursor.execute("SELECT 42")
        assert cursor.fetchone() == (42,)
    seconds = time.monotonic() - started
    connection.close()
    [pool] = registry.snapshots()
    counters = pool.counters
    return {
        "seconds": seconds,
        "dead": counters.closed["dead"],
        "expired": counters.closed["lifetime"],
    }


def connect() -> float:
    """Return how many seconds a connection takes, configured as the pool's are."""
    parameters = connections["default"].get_connection_params()
    parameters.pop("pool", None)
    taken = []
    for _ in range(5):
        started = time.monotonic()
        with psycopg.connect(**parameters, autocommit=True) as one:
            one.execute("SET TimeZone TO 'UTC'")
            taken.append(time.monotonic() - started)
    return max(taken)


# What runs in the test's.


class Worker:
    """A process with a pool of its own, which can be stopped and continued."""

    def __init__(self, url: str, **pool: Any) -> None:
        code = f"import django; django.setup(); from {__name__} import work; work()"
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", code],
            cwd=running.ROOT,
            env=running.environment(url, **pool),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def send(self, request: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()

    def answer(self) -> Any:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def do(self, request: str) -> Any:
        self.send(request)
        return self.answer()

    def stop(self) -> None:
        self.process.send_signal(signal.SIGSTOP)
        os.waitpid(self.process.pid, os.WUNTRACED)

    def go_on(self) -> None:
        self.process.send_signal(signal.SIGCONT)


@pytest.fixture
def make_worker() -> Iterator[Callable[..., Worker]]:
    """Start workers that end with the test."""
    made: list[Worker] = []

    def make(server: EmbeddedServer, through: FaultProxy | None = None, **pool: Any) -> Worker:
        url = server.url()
        if through is not None:
            url = url.replace(f":{server.port}/", f":{through.port}/")
        made.append(Worker(url, max_size=IDLE, **pool))
        return made[-1]

    yield make
    for worker in made:
        worker.go_on()
        with worker.process as process, contextlib.suppress(subprocess.TimeoutExpired):
            assert process.stdin is not None
            process.stdin.close()
            process.wait(20)
        assert process.returncode == 0


def soon(connect: float) -> float:
    """Return the bound of a checkout that opens one connection, on a machine that is busy."""
    return 5 * connect + 0.5


@needs_signals
@pytest.mark.parametrize(
    ("pool", "found"),
    [
        ({"max_lifetime": 1.0}, "expired"),
        ({}, "dead"),
        ({"min_size": IDLE, "max_lifetime": 1.0}, "expired"),
        ({"check_after": 0.5, "reset": "discard"}, "dead"),
    ],
    ids=["lifetime passed too", "lifetime left", "min_size", "round trip and discard"],
)
def test_a_process_that_was_stopped_past_its_sessions_end_serves_the_first_request_at_once(
    make_server: Callable[..., EmbeddedServer],
    make_worker: Callable[..., Worker],
    pool: dict[str, Any],
    found: str,
) -> None:
    server = make_server(settings={"idle_session_timeout": "2s"})
    worker = make_worker(server, **pool)
    usual = worker.do("connect")
    assert worker.do("fill") == IDLE
    worker.stop()
    wait_until(lambda: backend_pids(server, "postgres") == [])
    # The request waits in the pipe: what serves it runs before any thread had time to look.
    worker.send("ask")
    worker.go_on()
    answer = worker.answer()
    assert answer["seconds"] < soon(usual)
    assert answer["dead"] + answer["expired"] == IDLE
    assert answer[found] > 0


@needs_signals
def test_a_process_that_was_stopped_while_its_server_restarted_serves_the_first_request_at_once(
    own_server: EmbeddedServer, make_worker: Callable[..., Worker]
) -> None:
    worker = make_worker(own_server)
    usual = worker.do("connect")
    worker.do("fill")
    worker.stop()
    own_server.kill()
    own_server.start()
    worker.send("ask")
    worker.go_on()
    assert worker.answer()["seconds"] < soon(usual)


@needs_signals
def test_a_process_stopped_in_mid_outage_is_served_when_the_server_is_back(
    server: EmbeddedServer,
    proxy: FaultProxy,
    make_worker: Callable[..., Worker],
) -> None:
    worker = make_worker(server, proxy)
    worker.do("fill")
    proxy.down()
    proxy.cut()
    before = len(proxy.connects())
    worker.send("ask")
    time.sleep(0.5)  # The outage, in which the request waits.
    worker.stop()
    proxy.forward()
    worker.go_on()
    assert worker.answer()["dead"] == IDLE
    assert len(proxy.connects()) - before <= 2


@pytest.mark.parametrize("check_after", [0.0, 30.0])
def test_sessions_that_the_server_ends_sooner_than_anything_else_make_no_live_lock(
    make_server: Callable[..., EmbeddedServer], make_pool: MakePool, check_after: float
) -> None:
    server = make_server(settings={"idle_session_timeout": "100ms"})
    pool = make_pool(server, max_size=IDLE, min_size=3, check_after=check_after, timeout=10.0)
    taken: list[float] = []

    def work() -> None:
        for _ in range(10):
            started = time.monotonic()
            connection = pool.checkout()
            taken.append(time.monotonic() - started)
            pool.checkin(connection)
            time.sleep(0.15)  # Longer than a session may be idle.

    at_once(work, IDLE)
    assert len(taken) == 10 * IDLE
    assert max(taken) < 3.0
    assert pool.snapshot().counters.closed["dead"] > 0
