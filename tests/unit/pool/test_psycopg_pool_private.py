"""What is used of psycopg_pool's private parts is as it was; a failure says what to look at."""

from __future__ import annotations

import gc
import inspect
import queue
import threading

import psycopg
import psycopg_pool.pool
import pytest
from psycopg_pool import ConnectionPool, PoolClosed, PoolTimeout, TooManyRequests


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
    waiter = psycopg_pool.pool.WaitingClient[psycopg.Connection]()
    assert (waiter.conn, waiter.error) == (None, None)


def test_the_lock_of_an_open_pool_may_be_taken_again_by_its_holder() -> None:
    with ConnectionPool("", min_size=0, max_size=1, open=True) as pool:
        assert isinstance(pool._lock, type(threading.RLock()))


def test_a_lock_that_is_put_in_before_the_pool_opens_is_the_one_that_is_used() -> None:
    pool = ConnectionPool("", min_size=0, max_size=1, open=False)
    # Some versions make theirs when the pool opens, unless there is one.
    assert not hasattr(pool, "_lock") or len(gc.get_referrers(pool._lock)) == 1
    lock = pool._lock = threading.RLock()
    with pool:
        assert pool._lock is lock


def test_the_queue_that_is_there_when_its_threads_start_is_the_one_that_they_work_on() -> None:
    class Pool(ConnectionPool):
        def _start_workers(self) -> None:
            self._tasks = queue.SimpleQueue()  # type: ignore[assignment]
            super()._start_workers()

    done = threading.Event()

    class Task(psycopg_pool.pool.MaintenanceTask):
        def _run(self, pool: object) -> None:
            done.set()

    with Pool("", min_size=0, max_size=1, open=True) as pool:
        pool._tasks.put(Task(pool))
        assert done.wait(10)


def test_connections_are_handed_to_waiters_under_the_lock() -> None:
    source = inspect.getsource(ConnectionPool._add_to_pool)
    assert source.index("with self._lock") < source.index("self._waiting.popleft().set(conn)")


def test_the_queue_s_own_decisions_are_as_they_were() -> None:
    assert arguments(ConnectionPool._get_ready_connection) == ["self", "timeout"]
    pool = ConnectionPool("", min_size=1, max_size=1, max_waiting=1, open=False)
    assert pool._get_ready_connection(1.0) is None
    with pytest.raises(PoolTimeout):
        pool._get_ready_connection(0.0)
    pool._waiting.append(psycopg_pool.pool.WaitingClient())
    with pytest.raises(TooManyRequests):
        pool._get_ready_connection(1.0)
    with pytest.raises(PoolClosed):
        pool._check_open_getconn()
