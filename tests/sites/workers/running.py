"""Runs the site: its database, its processes' environment, its servers."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import sql

from embedded_postgres import free_port
from tests.servers.postgresql import backend_pids
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from embedded_postgres import EmbeddedServer

__all__ = [
    "ASGI",
    "Site",
    "asgi",
    "backends",
    "complains_not",
    "database",
    "environment",
    "gunicorn",
    "serving",
    "uvicorn",
]

ROOT = Path(__file__).resolve().parents[3]
ASGI_APPLICATION = "tests.sites.workers.asgi:application"
CHANNELS_APPLICATION = "tests.sites.workers.channels_asgi:application"
ASGI = {
    "uvicorn": ["uvicorn", "--host=127.0.0.1", "--port=0", "--lifespan=off"],
    "daphne": ["daphne", "--bind", "127.0.0.1", "--port=0"],
    "hypercorn": ["hypercorn", "--bind=127.0.0.1:0"],
    "gunicorn": ["gunicorn", "--worker-class=asgi", "--bind=127.0.0.1:0"],
    "uvicorn_worker": [
        *("gunicorn", "--worker-class=uvicorn_worker.UvicornWorker", "--bind=127.0.0.1:0"),
    ],
    "granian": ["granian", "--interface=asginl", "--host=127.0.0.1"],
}
"""Servers for asynchronous sites, by the package that each needs, and their commands."""
NO_POOL = {"size": 0, "in_use": 0, "waiting": 0}


def environment(url: str, **pool: object) -> dict[str, str]:
    """Return the environment of a process of the site.

    Args:
        url: its database.
        pool: options of its pool.
    """
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("DJANGO_", "GUNICORN_", "UVICORN_", "WEB_CONCURRENCY"))
    }
    # The package under test, installed or not.
    path = os.pathsep.join([str(ROOT), *filter(None, [kept.get("PYTHONPATH")])])
    return {
        **kept,
        "DATABASE_URL": url,
        "DJANGO_SETTINGS_MODULE": "tests.sites.workers.settings",
        "POOL": json.dumps({"max_size": 4, "timeout": 20.0, "stats_dir": False, **pool}),
        "PYTHONPATH": path,
    }


@contextlib.contextmanager
def database(server: EmbeddedServer, name: str) -> Iterator[str]:
    """Make a database with the site's tables, return its address, and drop it in the end."""
    _execute(server, "CREATE DATABASE {}", name)
    try:
        subprocess.run(
            [sys.executable, "-m", "django", "migrate", "--run-syncdb", "--verbosity=0"],
            cwd=ROOT,
            env=environment(server.url(name)),
            check=True,
            timeout=60,
        )
        yield server.url(name)
    finally:
        _execute(server, "DROP DATABASE {} WITH (FORCE)", name)


def _execute(server: EmbeddedServer, statement: str, name: str) -> None:
    with psycopg.connect(**server.parameters(), autocommit=True) as connection:
        connection.execute(sql.SQL(statement).format(sql.Identifier(name)))


class Site:
    """An application server and its processes, with all that they log."""

    def __init__(self, command: list[str], env: dict[str, str], log: Path) -> None:
        self._log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-X", "faulthandler", "-m", *command],
                cwd=ROOT,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def log(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")

    @property
    def port(self) -> int:
        return int(
            wait_until(lambda: re.findall(r"(?:http://|address )127\.0\.0\.1:(\d+)", self.log))[0]
        )

    def request(
        self, path: str, body: bytes | None = None, content_type: str = "text/plain"
    ) -> http.client.HTTPConnection:
        """Send a request and return its connection, whose answer is still to be read."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        headers = {"Connection": "close"}
        if body is None:
            connection.request("GET", path, headers=headers)
        else:
            headers["Content-Type"] = content_type
            connection.request("POST", path, body, headers)
        return connection

    def websocket(self, path: str) -> Any:
        """Open a websocket; of the package websocket-client."""
        from websocket import create_connection

        return create_connection(f"ws://127.0.0.1:{self.port}/{path}", timeout=60)

    def text(self, path: str) -> str:
        """Return the body of the answer, which has to be a good one."""
        with contextlib.closing(self.request(path)) as connection:
            answer = connection.getresponse()
            body = answer.read().decode()
        assert answer.status == 200, f"{path}: {answer.status} {body}\n{self.log}"
        return body

    def get(self, path: str) -> Any:
        """Return the JSON of the answer, which has to be a good one."""
        return json.loads(self.text(path))

    def get_all(self, paths: Iterable[str], threads: int = 16) -> list[Any]:
        """Request all the paths, many at once; return the answers in the paths' order."""
        with ThreadPoolExecutor(threads) as clients:
            return list(clients.map(self.get, paths))

    def pools(self, processes: int) -> dict[int, dict[str, int]]:
        """Return how the pool of each worker stands, by its pid.

        Args:
            processes: how many workers there are.
        """
        found: dict[int, dict[str, int]] = {}

        def ask() -> bool:
            for answer in self.get_all(["/pools"] * 2 * processes):
                # None as long as the process has not used its database.
                (found[answer["pid"]],) = answer["pools"] or [NO_POOL]
            return len(found) >= processes

        wait_until(ask)
        assert len(found) == processes, found
        return found

    def at_rest(self, processes: int = 1) -> dict[int, dict[str, int]]:
        """Wait until no worker has a connection in use or a waiter; return their pools."""

        def rest() -> dict[int, dict[str, int]] | None:
            found = self.pools(processes)
            busy = any(pool["in_use"] or pool["waiting"] for pool in found.values())
            return None if busy else found

        found = wait_until(rest, what=f"no connection in use; log:\n{self.log}")
        assert found is not None
        return found

    def end(self, within: float = 10.0) -> int:
        """Send SIGTERM to the server, wait for its end, and return its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(within)

    def kill(self) -> None:
        """End every process of the server, whatever state they are in."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.process.wait()


@contextlib.contextmanager
def serving(command: list[str], env: dict[str, str]) -> Iterator[Site]:
    """Run a server until the end of the block."""
    with tempfile.TemporaryDirectory() as folder:
        # gunicorn keeps a socket in the home folder.
        site = Site(command, {**env, "HOME": folder}, Path(folder) / "log")
        try:
            assert site.port
            yield site
        finally:
            site.kill()


def gunicorn(url: str, *options: str, **pool: object) -> contextlib.AbstractContextManager[Site]:
    """Run the site under gunicorn with two workers, loaded before they are forked."""
    command = ["gunicorn", "--preload", "--workers=2", "--bind=127.0.0.1:0"]
    command += ["--config=python:tests.sites.workers.gunicorn_conf", *options]
    return serving([*command, "tests.sites.workers.wsgi"], environment(url, **pool))


def uvicorn(url: str, *options: str, **pool: object) -> contextlib.AbstractContextManager[Site]:
    """Run the site under uvicorn, in one process."""
    command = [*ASGI["uvicorn"], *options, ASGI_APPLICATION]
    return serving(command, environment(url, **pool))


def asgi(
    server: str,
    url: str,
    *options: str,
    releases_streams: bool = False,
    channels: bool = False,
    **pool: object,
) -> contextlib.AbstractContextManager[Site]:
    """Run the site under any server for asynchronous sites, in one process.

    Args:
        server: which.
        url: the site's database.
        options: the server's own.
        releases_streams: whether it has the middleware for streaming responses.
        channels: whether it has the consumers of Channels.
        pool: options of its pool.
    """
    command = [*ASGI[server], *options]
    if server == "granian":
        # It does not tell which port it was given.
        command = [*command, f"--port={free_port()}"]
    env = environment(url, **pool)
    if releases_streams:
        env["SITE_RELEASES_STREAMS"] = "yes"
    return serving([*command, CHANNELS_APPLICATION if channels else ASGI_APPLICATION], env)


def complains_not(site: Site) -> None:
    """Fail if the log holds a warning of the pool, of Python or of gunicorn."""
    signs = r"Traceback|Exception ignored|\[(WARNING|ERROR|CRITICAL)\]|^pool |rolled back"
    assert not re.findall(signs, site.log, re.MULTILINE), site.log


def backends(database: str, server: EmbeddedServer, process: int | str = "%") -> set[int]:
    """Return the backends that a process of the site, or all of them, have in a database."""
    return set(backend_pids(server, database, application_name=f"django {process}@%"))
