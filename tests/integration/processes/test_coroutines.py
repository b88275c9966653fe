"""Decorated coroutines under servers: sessions that end, clients that go, consumers of Channels."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import psycopg
import pytest

from tests.servers.postgresql import kill_backends
from tests.sites.workers import running
from tests.support.threads import in_background
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from http.client import HTTPConnection

    from embedded_postgres import EmbeddedServer
    from tests.sites.workers.running import Site

NAME = "coroutines"


@pytest.fixture
def site(asgi_server: str, site_database: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """The site under each of the servers that is installed."""
    monkeypatch.setenv("SITE_LOGS_ERRORS", "1")
    with running.asgi(asgi_server, site_database, max_size=4, retry_budget=0) as made:
        wait_until(lambda: made.text("/health/live"))
        yield made


def under_way(server: EmbeddedServer, state: str) -> int:
    """Return how many backends of the site are in that state."""
    with psycopg.connect(**server.parameters(), autocommit=True) as connection:
        query = "SELECT count(*) FROM pg_stat_activity WHERE datname = %s AND state = %s"
        row = connection.execute(query, [NAME, state]).fetchone()
        assert row is not None
        return int(row[0])


def reset(client: HTTPConnection) -> None:
    """End the connection with a reset, as a browser that is closed."""
    assert isinstance(client.sock, socket.socket)
    client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


@contextlib.contextmanager
def sessions_ending(server: EmbeddedServer) -> Iterator[None]:
    """Have sessions of the site end again and again in this block."""
    over = threading.Event()

    def end_sessions() -> None:
        while not over.wait(0.2):
            kill_backends(server, NAME)

    with in_background(end_sessions, over):
        yield


def test_each_request_is_done_once_though_sessions_end(
    server: EmbeddedServer, site: Site, request: pytest.FixtureRequest
) -> None:
    name = f"votes_{request.node.callspec.id}"
    with sessions_ending(server):
        site.get_all([f"/coroutine/add/{name}"] * 100)
    assert site.get(f"/coroutine/value/{name}")["value"] == 100
    assert site.at_rest()


def test_under_wsgi_too(server: EmbeddedServer, site_database: str) -> None:
    workers = ["--worker-class=gthread", "--threads=6"]
    with running.gunicorn(site_database, *workers, max_size=3, retry_budget=0) as site:
        with sessions_ending(server):
            site.get_all(["/coroutine/add/wsgi"] * 60)
        # Twice as many threads as connections, and each request keeps one of those before its call.
        site.get_all(["/coroutine/add-after-query/wsgi"] * 40)
        assert site.get("/coroutine/value/wsgi")["value"] == 100
        assert site.at_rest(processes=2)


def test_calls_beside_each_other_and_within_each_other_share_no_more_than_they_should(
    site: Site, request: pytest.FixtureRequest
) -> None:
    for number in range(3):
        name = f"beside_{request.node.callspec.id}_{number}"
        answer = site.get(f"/coroutine/beside/{name}")
        first, second = answer["calls"]
        # In a block, by one backend, in one transaction, from the first step to the last.
        assert first == [first[0]] * 3
        assert second == [second[0]] * 3
        assert [first[0][0], second[0][0]] == [True, True]
        assert first[0][1:] != second[0][1:]
        assert not answer["outside"]
        assert site.get(f"/coroutine/value/{name}-0")["value"] == 1
    assert site.at_rest()


def test_requests_that_keep_a_connection_do_not_wait_for_each_other(
    site: Site, request: pytest.FixtureRequest
) -> None:
    name = f"kept_{request.node.callspec.id}"
    site.get_all([f"/coroutine/add-after-query/{name}"] * 60, threads=12)
    assert site.get(f"/coroutine/value/{name}")["value"] == 60
    assert site.at_rest()


def test_a_wait_for_a_connection_holds_up_no_other_request(
    server: EmbeddedServer, site: Site, request: pytest.FixtureRequest
) -> None:
    name = f"waited_{request.node.callspec.id}"
    with contextlib.ExitStack() as stack:
        long = [
            stack.enter_context(
                contextlib.closing(site.request(f"/coroutine/long/{name}{n}/asleep"))
            )
            for n in range(4)
        ]
        wait_until(lambda: under_way(server, "idle in transaction") == 4)
        waiting = [
            stack.enter_context(contextlib.closing(site.request(f"/coroutine/add/{name}")))
            for _ in range(6)
        ]
        (pool,) = wait_until(lambda: [p for p in site.pools(1).values() if p["waiting"] == 6])
        assert pool["in_use"] == 4
        for client in long:
            reset(client)
        for client in waiting:
            assert client.getresponse().status == 200
    assert site.get(f"/coroutine/value/{name}")["value"] == 6
    assert site.at_rest()


@pytest.mark.parametrize("what", ["sleep", "compute", "asleep"])
def test_a_client_that_goes_leaves_nothing_behind(
    server: EmbeddedServer, site: Site, what: str
) -> None:
    state = "idle in transaction" if what == "asleep" else "active"
    with contextlib.closing(site.request(f"/coroutine/long/gone/{what}")) as client:
        wait_until(lambda: under_way(server, state) == 1)
        reset(client)
        wait_until(lambda: under_way(server, state) == 0)
    assert site.at_rest()
    assert site.get("/coroutine/value/gone")["value"] is None


# Seconds that requests have at SIGTERM; daphne has no option for it, and ends at once.
ENDS_SOON = {
    "uvicorn": ["--timeout-graceful-shutdown=1"],
    "hypercorn": ["--graceful-timeout=1"],
    "gunicorn": ["--graceful-timeout=1"],
    "uvicorn_worker": ["--graceful-timeout=1"],
    "granian": ["--workers-kill-timeout=1"],
}


def test_a_server_that_ends_leaves_no_transaction_behind(
    server: EmbeddedServer, asgi_server: str, site_database: str, request: pytest.FixtureRequest
) -> None:
    name = f"ended_{request.node.callspec.id}"
    options = ENDS_SOON.get(asgi_server, [])
    with running.asgi(asgi_server, site_database, *options, max_size=4) as site:
        wait_until(lambda: site.text("/health/live"))
        with contextlib.closing(site.request(f"/coroutine/long/{name}/asleep")):
            wait_until(lambda: under_way(server, "idle in transaction") == 1)
            site.end(within=20.0)
            wait_until(lambda: not running.backends(NAME, server))
    with psycopg.connect(site_database) as connection:
        rows = connection.execute("SELECT 1 FROM app_counter WHERE name = %s", [name]).fetchall()
    assert rows == []


def test_each_message_to_a_consumer_is_done_once_though_sessions_end(
    server: EmbeddedServer,
    channels_server: str,
    site_database: str,
    request: pytest.FixtureRequest,
) -> None:
    name = f"messages_{request.node.callspec.id}"

    def send(site: Site, path: str, ways: list[str]) -> None:
        with contextlib.closing(site.websocket(path)) as client:
            for _ in range(5):
                for way in ways:
                    client.send(f"{way}:{name}")
                    assert client.recv() == f"{way}:{name}"

    ways = ["add", "add by channels", "add in thread"]
    with running.asgi(
        channels_server, site_database, channels=True, max_size=4, retry_budget=0
    ) as site:
        wait_until(lambda: site.text("/health/live"))
        with sessions_ending(server), ThreadPoolExecutor(12) as clients:
            calls = [clients.submit(send, site, "messages", ways) for _ in range(8)]
            calls += [clients.submit(send, site, "sync-messages", ["add"]) for _ in range(4)]
            for call in calls:
                call.result()
        assert site.get(f"/coroutine/value/{name}")["value"] == 8 * 5 * 3 + 4 * 5
        assert site.at_rest()


def test_a_websocket_that_goes_amid_a_transaction_leaves_nothing_behind(
    server: EmbeddedServer,
    channels_server: str,
    site_database: str,
    request: pytest.FixtureRequest,
) -> None:
    name = f"gone_{request.node.callspec.id}"
    with (
        running.asgi(channels_server, site_database, channels=True, max_size=4) as site,
        psycopg.connect(site_database, autocommit=True) as holder,
    ):
        wait_until(lambda: site.text("/health/live"))
        holder.execute("SELECT pg_advisory_lock(71)")
        with contextlib.closing(site.websocket("messages")) as client:
            client.send(f"add and wait:{name}")
            wait_until(lambda: under_way(server, "active") == 1)
            client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.shutdown()
        holder.execute("SELECT pg_advisory_unlock(71)")
        assert site.at_rest()
        assert under_way(server, "active") == under_way(server, "idle in transaction") == 0
        # Channels goes on with a message that has come.
        assert site.get(f"/coroutine/value/{name}")["value"] in (None, 0)
