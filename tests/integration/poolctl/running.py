"""A site under gunicorn, its manage.py poolctl, and visitors meanwhile."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

from tests.sites.workers.running import ROOT, environment, gunicorn
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.sites.workers.running import Site

__all__ = ["Control", "Visitors", "steered", "visited"]


class Control:
    """The command, run as an operator runs it.

    Args:
        url: The site's database.
        stats_dir: Where its processes publish.
    """

    def __init__(self, url: str, stats_dir: Path) -> None:
        self._environment = environment(url, stats_dir=str(stats_dir))

    def start(self, command: str, *arguments: str) -> subprocess.Popen[str]:
        """Start it, or another command."""
        return subprocess.Popen(
            [sys.executable, "-m", "django", command, *arguments],
            cwd=ROOT,
            env={**self._environment, "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *arguments: str, code: int = 0) -> str:
        """Run it to its end, expect its exit code, and return what it wrote."""
        process = self.start("poolctl", *arguments)
        output, _ = process.communicate(timeout=90)
        assert process.returncode == code, output
        assert "Traceback" not in output
        return output

    def pools(self) -> dict[int, dict[str, Any]]:
        """Return the pool of each process, by its pid."""
        process = self.start("poolstats", "--format=json")
        output, _ = process.communicate(timeout=60)
        found = json.loads(output)
        return {each["pid"]: each["pools"][0] for each in found["processes"]}

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
def steered(url: str, stats_dir: Path, **pool: Any) -> Iterator[tuple[Site, Control]]:
    """Run the site with two workers of six threads, both with an open pool."""
    options = {"stats_dir": str(stats_dir), "max_size": 3, "timeout": 30.0, **pool}
    with gunicorn(url, "--threads=6", **options) as site:
        wait_until(lambda: len({it["pid"] for it in site.get_all(["/double/1"] * 40)}) == 2)
        yield site, Control(url, stats_dir)


@contextlib.contextmanager
def visited(site: Site, number: int = 6) -> Iterator[Visitors]:
    """Have visitors ask all the time."""
    visitors = Visitors(site, number)
    try:
        yield visitors
    finally:
        visitors.end()
