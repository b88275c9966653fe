"""Fails when something that psycopg_seam uses below psycopg_pool's public interface changes."""

from __future__ import annotations

import inspect
import threading

import psycopg
import psycopg_pool.pool
from psycopg_pool import ConnectionPool


def arguments(function: object) -> list[str]:
    return list(inspect.signature(function).parameters)  # type: ignore[arg-type]


def test_the_methods_that_are_replaced_exist_with_the_same_arguments() -> None:
    assert arguments(ConnectionPool._maybe_grow_pool) == ["self"]
    assert arguments(ConnectionPool._add_connection) == ["self", "attempt", "growing"]
    assert arguments(ConnectionPool.run_task) == ["self", "task"]
    assert arguments(ConnectionPool.close) == ["self", "timeout"]


def test_the_methods_that_are_called_exist_with_the_same_arguments() -> None:
    assert arguments(ConnectionPool._connect) == ["self", "timeout"]
    assert arguments(ConnectionPool._add_to_pool) == ["self", "conn"]
    assert arguments(ConnectionPool._close_connection) == ["self", "conn"]
    assert arguments(psycopg_pool.pool.WaitingClient.fail) == ["self", "error"]
    assert arguments(psycopg_pool.pool.AddConnection) == ["pool", "attempt", "growing"]


def test_the_fields_that_are_touched_exist_with_the_same_meaning() -> None:
    pool = ConnectionPool("", min_size=2, max_size=5, open=False)
    assert list(pool._pool) == []
    assert list(pool._waiting) == []
    assert (pool._nconns, pool._min_size, pool._max_size) == (2, 2, 5)
    assert pool._closed is True
    assert isinstance(pool._lock, type(threading.RLock()))
    waiter = psycopg_pool.pool.WaitingClient[psycopg.Connection]()
    assert (waiter.conn, waiter.error) == (None, None)


def test_growing_is_decided_under_the_lock_after_the_waiter_has_queued() -> None:
    source = inspect.getsource(ConnectionPool._getconn_unchecked)
    queued, grown = source.index("self._waiting.append"), source.index("self._maybe_grow_pool()")
    assert source.index("with self._lock") < queued < grown
