"""200 asynchronous requests at once on a pool of 10: sessions are held while views await others.

    python benchmarks/asgi.py

A view queries, awaits 0.5 s as for another service, and queries again. In a second table it makes
one decorated call with an INSERT, and awaits nothing else. One uvicorn for each row, one after the
other, on one server; the rows take turns for ``--rounds`` rounds, with new processes.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import statistics
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from _background import Background
from _site import set_up
from asgiref.sync import SyncToAsync, sync_to_async

if TYPE_CHECKING:
    from collections.abc import Iterator

    import psycopg
    from django.http import HttpRequest, HttpResponse

SIZE, TIMEOUT = 10, 30.0
DJANGO = "django.db.backends.postgresql"
POOL = {"pool": {"max_size": SIZE, "timeout": TIMEOUT}}
TRANSACTION = {"pool": {**POOL["pool"], "pool_mode": "transaction"}}
CONTESTANTS: dict[str, tuple[dict[str, Any], str]] = {
    "Django's engine, no pool": ({"ENGINE": DJANGO}, "view"),
    "no pool, `database_sync_to_async`": ({"ENGINE": DJANGO}, "channels"),
    "Django's pool": ({"ENGINE": DJANGO, "OPTIONS": POOL}, "view"),
    "its pool, `database_sync_to_async`": ({"ENGINE": DJANGO, "OPTIONS": POOL}, "channels"),
    "django_pooled, session": ({"ENGINE": "django_pooled", "OPTIONS": POOL}, "view"),
    "django_pooled, transaction": ({"ENGINE": "django_pooled", "OPTIONS": TRANSACTION}, "view"),
}
DECORATED: dict[str, tuple[dict[str, Any], str]] = {
    "function, which Django runs by `sync_to_async`": (
        {"ENGINE": "django_pooled", "OPTIONS": POOL},
        "function",
    ),
    "coroutine": ({"ENGINE": "django_pooled", "OPTIONS": POOL}, "coroutine"),
}
TABLES = ("engine", "decorated")


# The site, in each uvicorn.


def query() -> Any:
    """Ask the database."""
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute("SELECT 42")
        return cursor.fetchone()


class DatabaseSyncToAsync(SyncToAsync[Any, Any]):
    """As that of Channels, which is not installed here."""

    def thread_handler(self, *args: Any, **kwargs: Any) -> Any:
        """Close old connections before and after a call."""
        from django.db import close_old_connections

        close_old_connections()
        try:
            return super().thread_handler(*args, **kwargs)  # type: ignore[no-untyped-call]
        finally:
            close_old_connections()


async def _view(ask: Any) -> HttpResponse:
    from django.http import HttpResponse

    await ask()
    await asyncio.sleep(float(os.environ["BENCHMARK_PAUSE"]))
    await ask()
    return HttpResponse("ok")


async def view(request: HttpRequest) -> HttpResponse:
    """Query, await another service, query again."""
    return await _view(sync_to_async(query))


async def channels(request: HttpRequest) -> HttpResponse:
    """As `view`, by Channels' function."""
    return await _view(DatabaseSyncToAsync(query))


def insert() -> None:
    """Write to the database."""
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute("INSERT INTO vote VALUES (42)")


async def coroutine(request: HttpRequest) -> HttpResponse:
    """Write in a transaction that is run again."""
    from django.http import HttpResponse

    await sync_to_async(insert)()
    return HttpResponse("ok")


def function(request: HttpRequest) -> HttpResponse:
    """As `coroutine`, in synchronous code."""
    from django.http import HttpResponse

    insert()
    return HttpResponse("ok")


def site() -> Any:
    """Return the ASGI application."""
    from django.core.asgi import get_asgi_application
    from django.urls import path

    set_up(__name__)
    from django_pooled import retry_transaction

    globals()["urlpatterns"] = [
        path("view", view),
        path("channels", channels),
        path("function", retry_transaction(function)),
        path("coroutine", retry_transaction(coroutine)),
    ]
    return get_asgi_application()


# Its clients.


class Run(NamedTuple):
    """What one burst of requests has shown."""

    errors: int
    seconds: float
    p99: float
    sessions: int
    threads: int
    memory: float
    """Of the server's process at most, in MB."""


async def _get(port: int, path: str) -> tuple[bool, float]:
    began = time.monotonic()
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"GET /{path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        answer = await reader.read()
        writer.close()
    except OSError:
        answer = b""
    return answer.startswith(b"HTTP/1.1 200"), time.monotonic() - began


async def burst(port: int, path: str, count: int) -> tuple[int, float, float]:
    """Send requests at once; return errors, seconds in all, and the 99th percentile."""
    began = time.monotonic()
    answers = await asyncio.gather(*[_get(port, path) for _ in range(count)])
    seconds = time.monotonic() - began
    times = sorted(took for _, took in answers)
    return sum(not good for good, _ in answers), seconds, times[int(0.99 * (count - 1))]


@contextlib.contextmanager
def uvicorn(database: dict[str, Any], pause: float) -> Iterator[tuple[int, int]]:
    """Serve the site; yields its port and process when it answers."""
    from _common import BENCHMARKS, environment, free_port

    port = free_port()
    command = [sys.executable, "-m", "uvicorn", f"--port={port}", "--lifespan=off"]
    command += ["--log-level=critical", "--factory", "asgi:site"]
    process = subprocess.Popen(
        command,
        env=environment(database, BENCHMARK_PAUSE=str(pause)),
        cwd=BENCHMARKS,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 60.0
        while not asyncio.run(_get(port, "view"))[0]:
            if process.poll() is not None or time.monotonic() > deadline:
                sys.exit("uvicorn does not serve the site")
            time.sleep(0.1)
        yield port, process.pid
    finally:
        process.terminate()
        process.wait()


class Watch(Background):
    """Looks at the server's process and its sessions until the end of the block."""

    def __init__(self, admin: psycopg.Connection[Any], pid: int) -> None:
        super().__init__()
        self.sessions, self.threads, self.memory = 0, 0, 0.0
        self._admin, self._pid = admin, pid

    def _run(self) -> None:
        from pathlib import Path

        while not self._end.wait(0.05):
            found = self._admin.execute(
                "SELECT count(*) FROM pg_stat_activity "
                "WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
            )
            self.sessions = max(self.sessions, found.fetchall()[0][0])
            status = dict(
                line.split(":", 1)
                for line in Path(f"/proc/{self._pid}/status").read_text().splitlines()
            )
            self.threads = max(self.threads, int(status["Threads"]))
            self.memory = max(self.memory, int(status["VmRSS"].split()[0]) / 1024)


def run(
    contestant: tuple[dict[str, Any], str],
    one: Any,
    admin: psycopg.Connection[Any],
    count: int,
    pause: float,
) -> Run:
    """Send one burst to one contestant."""
    settings, path = contestant
    database = {**one.django_settings(), **settings}
    with uvicorn(database, pause) as (port, pid), Watch(admin, pid) as watch:
        asyncio.run(burst(port, path, 1))
        errors, seconds, p99 = asyncio.run(burst(port, path, count))
    return Run(errors, seconds, p99, watch.sessions, watch.threads, watch.memory)


def table(title: str, runs: dict[str, list[Run]], count: int) -> None:
    """Print the medians of each contestant."""
    print(
        f"\n| {title} | errors | all answered, s | answers/s | p99, s | sessions | threads | MB |"
    )
    print("|---|--:|--:|--:|--:|--:|--:|--:|")
    for name, found in runs.items():
        errors, seconds, p99, sessions, threads, memory = map(
            statistics.median, zip(*found, strict=True)
        )
        print(
            f"| {name} | {errors:.0f} | {seconds:.1f} | {(count - errors) / seconds:.0f} "
            f"| {p99:.1f} | {sessions:.0f} | {threads:.0f} | {memory:.0f} |"
        )


def main() -> int:
    """Run it and print the table; returns the exit code."""
    import psycopg
    from _common import arguments, server

    parser = arguments(__doc__)
    parser.add_argument("--requests", type=int, default=200, help="at once")
    parser.add_argument("--pause", type=float, default=0.5, help="seconds between the two queries")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", default=list(TABLES), choices=TABLES)
    chosen = parser.parse_args()
    if chosen.quick:
        chosen.rounds = 1
    tables = {
        "engine": (CONTESTANTS, chosen.pause),
        "decorated": (DECORATED, 0.0),
    }
    runs: dict[str, dict[str, list[Run]]] = {
        title: {name: [] for name in rows} for title, (rows, _) in tables.items()
    }
    with server() as one, psycopg.connect(**one.parameters(), autocommit=True) as admin:
        admin.execute("CREATE TABLE vote (candidate int)")
        for _ in range(chosen.rounds):
            for title in chosen.only:
                rows, pause = tables[title]
                for name, contestant in rows.items():
                    found = run(contestant, one, admin, chosen.requests, pause)
                    runs[title][name].append(found)
        [(limit,)] = admin.execute("SHOW max_connections").fetchall()
    print(
        f"{chosen.requests} requests at once, {chosen.pause:g} s between two queries; pools of "
        f"{SIZE}, max_connections {limit}; medians of {chosen.rounds} rounds"
    )
    for title in chosen.only:
        table(title, runs[title], chosen.requests)
    return 0


if __name__ == "__main__":
    sys.exit(main())
