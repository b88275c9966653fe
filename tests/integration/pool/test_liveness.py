from __future__ import annotations

import contextlib
import importlib.util
import os
import select
import signal
import socket
import sys
import threading
from time import monotonic
from typing import TYPE_CHECKING

import psycopg
import pytest

from django_pooled.pool import socket_check
from django_pooled.pool.liveness import answers, looks_alive
from tests.servers.postgresql import kill_backends

if TYPE_CHECKING:
    from collections.abc import Iterator

    from django_pooled.pool.connection import PooledConnection
    from embedded_postgres import EmbeddedServer
    from tests.servers.fault_proxy import FaultProxy
    from tests.support.pools import MakePool


@pytest.fixture
def connection(
    server: EmbeddedServer, proxy: FaultProxy, make_pool: MakePool
) -> Iterator[PooledConnection]:
    """A connection by way of the proxy."""
    pool = make_pool(server, through=proxy)
    made = pool.checkout()
    yield made
    pool.checkin(made)


@contextlib.contextmanager
def stopped(connection: PooledConnection) -> Iterator[int]:
    """Keep the connection's backend from working."""
    backend = connection.info.backend_pid
    os.kill(backend, signal.SIGSTOP)
    try:
        yield backend
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(backend, signal.SIGCONT)


def stuff(connection: PooledConnection) -> None:
    """Write to the connection's socket until it takes no more."""
    with socket.socket(fileno=connection.fileno()) as raw:
        try:
            while True:
                raw.send(b"\0" * 65536, socket.MSG_DONTWAIT)
        except BlockingIOError:
            pass
        finally:
            raw.detach()


@pytest.mark.parametrize("missing", ["nothing", "ctypes", "poll"])
def test_a_dead_connection_is_seen_whatever_the_platform_lacks(
    connection: PooledConnection,
    proxy: FaultProxy,
    monkeypatch: pytest.MonkeyPatch,
    missing: str,
) -> None:
    if missing != "nothing":
        monkeypatch.setattr(socket_check, "_poll", None)
    if missing == "poll":
        monkeypatch.delattr(select, "poll")
    connection.session.is_readable = socket_check.look_at(connection.fileno())
    assert looks_alive(connection)
    assert answers(connection, 10.0)
    proxy.freeze()
    assert not answers(connection, 0.05)
    proxy.forward()
    proxy.cut()
    assert not looks_alive(connection)


def test_a_python_without_ctypes_has_poll(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ctypes", None)
    spec = importlib.util.find_spec("django_pooled.pool.socket_check")
    assert spec is not None
    assert spec.loader is not None
    without = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(without)
    assert without._poll is None
    ours, theirs = socket.socketpair()
    with ours, theirs:
        is_readable = without.look_at(ours.fileno())
        assert not is_readable()
        theirs.send(b"x")
        assert is_readable()


@pytest.mark.skipif(socket_check._poll is None, reason="this platform's C library has no poll()")
def test_a_look_lets_no_other_thread_run_meanwhile() -> None:
    ours, theirs = socket.socketpair()
    before = sys.getswitchinterval()
    busy = threading.Event()
    with ours, theirs:
        is_readable = socket_check.look_at(ours.fileno())

        def compute() -> None:
            while not busy.is_set():
                pass

        others = [threading.Thread(target=compute) for _ in range(3)]
        # A thread that lets others run gets its turn again after that.
        sys.setswitchinterval(1.0)
        try:
            for other in others:
                other.start()
            started = monotonic()
            for _ in range(100):
                is_readable()
            took = monotonic() - started
        finally:
            sys.setswitchinterval(before)
            busy.set()
            for other in others:
                other.join()
    assert took < 20.0


def test_a_socket_that_never_runs_dry_is_left_to_the_round_trip(
    server: EmbeddedServer, make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make_pool(server)
    connection = pool.checkout()
    connection.execute("LISTEN flood")
    with psycopg.connect(**server.parameters("postgres"), autocommit=True) as other:
        for number in range(100):
            other.execute("SELECT pg_notify('flood', %s || repeat('x', 7000))", [str(number)])
    # More has arrived than one read takes.
    select.select([connection], [], [], 10.0)
    monkeypatch.setattr(socket_check, "_READS", 1)
    assert looks_alive(connection)
    assert select.select([connection], [], [], 0)[0]
    pool.checkin(connection)


def test_a_backend_that_was_ended_gives_no_answer(
    connection: PooledConnection, server: EmbeddedServer
) -> None:
    kill_backends(server, "postgres")
    assert not answers(connection, 10.0)


def test_a_connection_that_was_shut_gives_no_answer(
    connection: PooledConnection, proxy: FaultProxy
) -> None:
    proxy.cut(reset=True)
    assert not answers(connection, 10.0)


def test_who_takes_nothing_in_is_given_up_in_time(
    server: EmbeddedServer, make_pool: MakePool
) -> None:
    pool = make_pool(server)
    connection = pool.checkout()
    with stopped(connection):
        stuff(connection)
        assert not answers(connection, 0.05)
    pool.checkin(connection)


def test_who_takes_nothing_in_for_a_while_is_waited_for(
    server: EmbeddedServer, make_pool: MakePool
) -> None:
    pool = make_pool(server)
    connection = pool.checkout()
    with stopped(connection) as backend:
        stuff(connection)
        later = threading.Timer(0.1, os.kill, [backend, signal.SIGCONT])
        later.start()
        started = monotonic()
        # The question gets out, behind what the server takes for a broken message.
        assert not answers(connection, 60.0)
        assert 0.05 < monotonic() - started < 30.0
        later.join()
    pool.checkin(connection)
