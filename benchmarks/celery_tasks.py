"""Tasks on a Celery worker of two processes: sessions opened at the server, and tasks per second.

    python benchmarks/celery_tasks.py --quick

Needs Celery (the extra "test"). The engines have their turns one after another on the same server,
each with a database of its own, whose sessions the server counts. All tasks are in the queue, a
folder, before the worker starts; each asks for one row. Figures are median / worst of the
repetitions. The exit code is 0 if ours opened no more sessions than min_size for each process,
else 1.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import psycopg
from _common import ENGINES, ROOT, arguments, server, temporary_folder
from _tables import Figures, fewest, plain

from tests.servers.postgresql import backend_count
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from _common import EmbeddedServer, Engine

COLUMNS = (ENGINES[0], ENGINES[-1])
"""Health checks change nothing for a pool that is closed around each task."""
PROCESSES = 2
POOL = {"min_size": 1, "max_size": 4}
APPLICATION = "tests.sites.processes.celery_app"
PATIENCE = 300.0
"""Seconds after which tasks that are not done never will be."""


def run(one: EmbeddedServer, engine: Engine, name: str, tasks: int) -> tuple[int, float]:
    """Run the tasks on a new database; returns the sessions it saw, and tasks per second."""
    execute(one, f"CREATE DATABASE {name}")
    with temporary_folder() as folder:
        for queue in ("queue", "sent", "control"):
            (folder / queue).mkdir()
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
            "DJANGO_SETTINGS_MODULE": "tests.sites.processes.settings",
            "DATABASE_URL": one.url(name),
            "ENGINE": engine.settings["ENGINE"],
            "POOL": json.dumps(POOL),
            "CELERY_FOLDER": str(folder),
        }
        send(folder, environment, tasks)
        with worker(folder, environment):
            # Only counted, since what looks every few milliseconds takes time from the tasks.
            wait_until(lambda: len(said(folder)) == tasks, PATIENCE, f"{tasks} tasks are done")
        ends = sorted(json.loads(line)["at"] for line in said(folder))
    # A session counts itself when it ends, at the latest.
    wait_until(lambda: backend_count(one, name) == 0, PATIENCE)
    sessions = execute(one, f"SELECT sessions FROM pg_stat_database WHERE datname = '{name}'")
    return sessions, (tasks - 1) / (ends[-1] - ends[0])


def execute(one: EmbeddedServer, statement: str) -> Any:
    with psycopg.connect(**one.parameters(), autocommit=True) as connection:
        cursor = connection.execute(statement)
        return cursor.fetchall()[0][0] if cursor.description else None


def send(folder: Path, environment: dict[str, str], tasks: int) -> None:
    """Put that many tasks into the queue."""
    code = f"from {APPLICATION} import use\nfor number in range({tasks}): use.delay(number)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, check=True)
    for message in (folder / "sent").iterdir():
        message.rename(folder / "queue" / message.name)


@contextlib.contextmanager
def worker(folder: Path, environment: dict[str, str]) -> Iterator[None]:
    """Start a Celery worker, and have it leave."""
    command = ["celery", "-A", APPLICATION, "worker", f"--concurrency={PROCESSES}"]
    command += ["--pool=prefork", "--without-gossip", "--without-mingle", "--without-heartbeat"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        yield
        process.terminate()
        process.wait(PATIENCE)
    except BaseException:
        print((folder / "log").read_text(errors="replace"))
        raise
    finally:
        # Whatever of its processes is still there.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def said(folder: Path) -> list[str]:
    """Return what the tasks that are done have written, each a line when it had its row."""
    path = folder / "said"
    return path.read_text().splitlines() if path.exists() else []


def main() -> int:
    """Run it and print the table; returns the exit code."""
    parser = arguments(__doc__)
    parser.add_argument("--tasks", type=int, default=400)
    parser.add_argument("--repeat", type=int, default=5)
    chosen = parser.parse_args()
    if chosen.quick:
        chosen.tasks, chosen.repeat = 100, 1
    figures = Figures(
        f"{chosen.tasks} tasks, {PROCESSES} processes, {POOL}, {chosen.repeat} times",
        COLUMNS,
    )
    most = 0
    with server() as one:
        for number in range(chosen.repeat):
            found = [
                run(one, engine, f"celery_{number}_{column}", chosen.tasks)
                for column, engine in enumerate(COLUMNS)
            ]
            sessions, rates = zip(*found, strict=True)
            figures.note("sessions opened", sessions, plain)
            figures.note("tasks per second", rates, fewest)
            most = max(most, sessions[-1])
    figures.print()
    if most > (bar := PROCESSES * POOL["min_size"]):
        print(f"WRONG: {most} sessions, not {bar}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
