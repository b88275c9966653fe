"""The pool under gunicorn's gevent worker: requests are greenlets, and so are its threads."""

from __future__ import annotations

import contextlib
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from django_pooled.poolstats.processes.collect import collect
from tests.servers.postgresql import backend_count, kill_backends
from tests.sites.workers import running
from tests.sites.workers.running import complains_not
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from embedded_postgres import EmbeddedServer
    from tests.sites.workers.running import Site

pytest.importorskip("gevent", reason="gevent is not installed")

NAME = "greenlets"
backends = partial(running.backends, NAME)
"""The backends of a process of the site, or of all."""
MAX_SIZE = 4
AT_ONCE = 3 * MAX_SIZE
WORKER = [
    "--worker-class=gevent",
    "--worker-connections=64",
    "--config=python:tests.sites.processes.gunicorn_gevent",
]


@pytest.fixture(scope="module")
def database(server: EmbeddedServer) -> Iterator[str]:
    """The address of a database with the site's tables."""
    with running.database(server, NAME) as url:
        yield url


@pytest.fixture
def preloaded(database: str, stats_dir: Path) -> Iterator[Site]:
    """Two workers forked by a master that has one connection in use and another idle."""
    with running.gunicorn(database, *WORKER, stats_dir=str(stats_dir)) as site:
        yield site
        complains_not(site)


def under_load(server: EmbeddedServer, site: Site, paths: list[str]) -> tuple[list[Any], int]:
    """Return the answers, and the most backends that one process had meanwhile."""
    most, masters = 0, backends(server, site.pid)
    with ThreadPoolExecutor(1) as background:
        answers = background.submit(site.get_all, paths, AT_ONCE)
        while not answers.done():
            workers = backends(server) - masters
            most = max(most, len(workers))
            time.sleep(0.01)
    return answers.result(), most


def test_greenlets_share_a_bounded_pool_and_leave_nothing_in_use(
    preloaded: Site, server: EmbeddedServer
) -> None:
    masters = wait_until(lambda: backends(server, preloaded.pid))
    assert len(masters) == 2

    answers, most = under_load(server, preloaded, [f"/double/{n}" for n in range(300)])

    assert [answer["result"] for answer in answers] == [2 * n for n in range(300)]
    assert most <= 2 * MAX_SIZE
    pools = preloaded.at_rest(processes=2)
    for worker, pool in pools.items():
        assert pool["size"] == len(backends(server, worker)) <= MAX_SIZE
        assert pool["checkouts"] == pool["returned"]
        assert pool["reclaimed"] == 0
    assert not masters & {answer["backend"] for answer in answers}
    assert backends(server, preloaded.pid) == masters


def test_greenlets_wait_for_the_database_side_by_side(
    database: str, server: EmbeddedServer
) -> None:
    with (
        running.gunicorn(database, *WORKER, "--workers=1") as site,
        ThreadPoolExecutor(AT_ONCE) as clients,
    ):
        site.get("/double/1")
        slow = [clients.submit(site.get, "/slow/1") for _ in range(AT_ONCE)]
        wait_until(lambda: backend_count(server, NAME, state="active") == MAX_SIZE)
        # The others wait for a connection, and hold up nobody who needs none.
        waiting = site.pools(1)
        assert [pool["waiting"] for pool in waiting.values()] == [AT_ONCE - MAX_SIZE]
        assert [answer.result()["result"] for answer in slow] == [2] * AT_ONCE
        site.at_rest(1)
        complains_not(site)


def test_poolstats_gets_answers_from_greenlets(preloaded: Site, stats_dir: Path) -> None:
    preloaded.get_all([f"/double/{n}" for n in range(50)], AT_ONCE)
    workers = set(preloaded.at_rest(processes=2))
    # gevent's processes share a listening socket of their master's unless the child leaves it.
    found = wait_until(lambda: collect(str(stats_dir)))
    assert {report.pid for report in found.reports} == {preloaded.pid, *workers}
    assert found.silent == []


def test_a_client_that_leaves_a_greenlet_waiting_costs_no_connection(
    preloaded: Site, server: EmbeddedServer
) -> None:
    clients = [preloaded.request("/slow/0.3") for _ in range(AT_ONCE)]
    wait_until(lambda: backend_count(server, NAME, state="active") >= MAX_SIZE)
    for client in clients:
        client.close()
    preloaded.at_rest(processes=2)
    answers = preloaded.get_all([f"/double/{n}" for n in range(50)], AT_ONCE)
    assert [answer["result"] for answer in answers] == [2 * n for n in range(50)]


def test_no_request_fails_when_idle_connections_of_greenlets_were_killed(
    database: str, server: EmbeddedServer
) -> None:
    with running.gunicorn(database, *WORKER, "--workers=1") as site:
        site.get_all([f"/double/{n}" for n in range(50)], AT_ONCE)
        site.at_rest(1)
        assert kill_backends(server, NAME) > MAX_SIZE
        answers = site.get_all([f"/double/{n}" for n in range(50)], AT_ONCE)
        assert [answer["result"] for answer in answers] == [2 * n for n in range(50)]
        site.at_rest(1)


def test_requests_of_greenlets_finish_after_sigterm_and_the_process_leaves(
    database: str, server: EmbeddedServer
) -> None:
    with (
        running.gunicorn(database, *WORKER) as site,
        ThreadPoolExecutor(AT_ONCE) as clients,
    ):
        answers = [clients.submit(site.get, "/slow/1") for _ in range(MAX_SIZE)]
        wait_until(lambda: backend_count(server, NAME, state="active") == MAX_SIZE)
        assert site.end(within=10.0) in (0, -15)
        assert [answer.result()["result"] for answer in answers] == [2] * MAX_SIZE
        wait_until(lambda: not backends(server))
        complains_not(site)


def test_the_masters_connections_outlive_recycled_greenlet_workers(
    database: str, server: EmbeddedServer
) -> None:
    with running.gunicorn(database, *WORKER, "--max-requests=20") as site:
        masters = wait_until(lambda: backends(server, site.pid))
        processes: set[int] = set()
        while len(processes) < 5:
            # A worker that leaves resets connections that it had accepted and not read yet.
            with contextlib.suppress(ConnectionError):
                processes.add(site.get("/double/1")["pid"])
        assert backends(server, site.pid) == masters
        wait_until(lambda: len({p for p in processes if backends(server, p)}) <= 2)
        complains_not(site)
