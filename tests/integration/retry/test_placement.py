"""Where a decorated coroutine has its transactions: among several databases, tasks and threads."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from asgiref.sync import ThreadSensitiveContext, async_to_sync, sync_to_async
from django.core.signals import request_finished, request_started
from django.db import connections
from django.db.transaction import atomic

from django_pooled import registry, retry_transaction
from django_pooled.retry import placement
from django_pooled.retry.own_threads import OwnThreads
from tests.support.pools import snapshot_of
from tests.support.tasks import run, until

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from embedded_postgres import EmbeddedServer
    from tests.support.pools import MakeDatabase


class TwoDatabases:
    """Two aliases, and decorated coroutine functions that query the first."""

    def __init__(self, one: str, two: str) -> None:
        self.one = one
        self.two = two

    async def backend(self) -> int:
        """Return the backend that serves queries on the first database."""
        return await sync_to_async(backend_pid)(self.one)

    async def call_on_two(self) -> int:
        """Query the first database in a call that is decorated for the second."""
        return await retry_transaction(using=self.two)(self.backend)()


@pytest.fixture
def databases(server: EmbeddedServer, make_database: MakeDatabase) -> TwoDatabases:
    made = [make_database(server, max_size=2, timeout=5.0) for _ in range(2)]
    return TwoDatabases(*made)


def backend_pid(alias: str) -> int:
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        return int(cursor.fetchone()[0])


def asking(alias: str) -> Callable[[], Coroutine[Any, Any, int]]:
    """Return a decorated coroutine function that asks which session it has."""

    @retry_transaction(using=alias)
    async def work() -> int:
        return await sync_to_async(backend_pid)(alias)

    return work


async def in_a_request(*made: Coroutine[Any, Any, Any]) -> list[Any]:
    """Run coroutines side by side in a request under ASGI, which has a thread of its own."""
    async with ThreadSensitiveContext():
        await request_started.asend(sender=None)
        try:
            return await asyncio.gather(*made)
        finally:
            await request_finished.asend(sender=None)


# Several databases


def test_a_call_within_one_for_another_database_takes_part_in_that_ones_transaction(
    databases: TwoDatabases,
) -> None:
    @retry_transaction(using=databases.one)
    async def outer() -> list[int]:
        return [
            await databases.backend(),
            await databases.call_on_two(),
            *await asyncio.gather(databases.call_on_two(), databases.call_on_two()),
            await databases.backend(),
        ]

    assert len(set(run(outer))) == 1


def test_within_a_synchronous_call_or_block_for_another_database_it_takes_part_too(
    databases: TwoDatabases,
) -> None:
    def outer() -> None:
        assert async_to_sync(databases.call_on_two)() == backend_pid(databases.one)

    retry_transaction(using=databases.one)(outer)()
    with atomic(using=databases.one):
        outer()


def test_what_a_call_within_another_has_written_elsewhere_ends_the_attempts(
    databases: TwoDatabases,
) -> None:
    runs: list[int] = []

    def write(statement: str) -> None:
        with connections[databases.two].cursor() as cursor:
            cursor.execute("CREATE TABLE IF NOT EXISTS written (run int)")
            cursor.execute(statement)

    @retry_transaction(using=databases.two)
    async def inner() -> None:
        await sync_to_async(write)(f"INSERT INTO written VALUES ({len(runs)})")

    def fail() -> None:
        with connections[databases.one].cursor() as cursor:
            cursor.execute("DO $$ BEGIN RAISE EXCEPTION 'made' USING ERRCODE = '40001'; END $$")

    @retry_transaction(using=databases.one)
    async def outer() -> None:
        runs.append(1)
        await inner()
        await sync_to_async(fail)()

    with pytest.raises(Exception, match="made") as caught:
        run(outer)
    assert runs == [1]
    # Before Python 3.11 an error has no notes.
    assert any(databases.two in n for n in getattr(caught.value, "__notes__", [databases.two]))


def test_state_of_a_session_of_another_database_can_be_relied_on(databases: TwoDatabases) -> None:
    def set_tenant() -> int:
        with connections[databases.one].cursor() as cursor:
            cursor.execute("SET app.tenant = 'seven'")
        return backend_pid(databases.one)

    async def main() -> None:
        assert await sync_to_async(set_tenant)() == await databases.call_on_two()

    run(lambda: in_a_request(main()))


def test_a_connection_that_a_request_keeps_to_another_database_goes_back_first(
    server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    databases = TwoDatabases(
        make_database(server, max_size=1, timeout=5.0), make_database(server, max_size=1)
    )

    async def main() -> None:
        assert await databases.backend() == await databases.call_on_two()

    run(lambda: in_a_request(main()))


# Tasks beside it


@pytest.mark.parametrize("mode", ["session", "transaction"])
@pytest.mark.parametrize("is_first", [True, False], ids=["call first", "query first"])
def test_a_query_beside_a_call_does_not_keep_the_connection_that_the_call_waits_for(
    server: EmbeddedServer, make_database: MakeDatabase, mode: str, is_first: bool
) -> None:
    alias = make_database(server, max_size=1, timeout=5.0, pool_mode=mode)

    work = asking(alias)

    async def main() -> None:
        for _ in range(3):
            made = [work(), sync_to_async(backend_pid)(alias)]
            one, two = await in_a_request(*(made if is_first else reversed(made)))
            assert one == two

    run(main)


def test_a_query_that_waited_before_the_call_does_not_keep_its_connection(
    server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    alias = make_database(server, max_size=1, timeout=5.0)
    held, leave = asyncio.Event(), asyncio.Event()

    def waiting() -> int:
        return sum(pool.waiting for pool in registry.snapshots() if pool.alias == alias)

    work = asking(alias)

    @retry_transaction(using=alias)
    async def hold() -> None:
        await sync_to_async(backend_pid)(alias)
        held.set()
        await leave.wait()

    async def main() -> None:
        async def query() -> int:
            return await sync_to_async(backend_pid)(alias)

        async def call() -> int:
            await until(lambda: waiting() == 1)
            return await work()

        async def end() -> None:
            await until(lambda: waiting() == 2)
            leave.set()

        holder = asyncio.create_task(hold())
        await held.wait()
        await in_a_request(query(), call(), end())
        await holder

    run(main)


def test_a_decorated_call_in_a_task_that_a_call_has_left_behind_is_made(
    server: EmbeddedServer, make_database: MakeDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    alias = make_database(server, max_size=3)
    threads = OwnThreads("of_this_test")
    monkeypatch.setattr(placement, "THREADS", threads)
    begun, leave = asyncio.Event(), asyncio.Event()

    work = asking(alias)

    async def late() -> int:
        await begun.wait()
        return await work()

    @retry_transaction(using=alias)
    async def leave_behind() -> asyncio.Task[int]:
        await work()
        return asyncio.create_task(late())

    @retry_transaction(using=alias)
    async def in_the_same_thread() -> None:
        await work()
        begun.set()
        await leave.wait()

    async def main() -> None:
        left = await leave_behind()
        # The thread of that call is the next one's.
        await until(lambda: len(threads._idle) == 1)
        other = asyncio.create_task(in_the_same_thread())
        assert await left > 0
        leave.set()
        await other

    run(main)


# Synchronous code that waits for the event loop


@pytest.mark.parametrize("unsafe", [False, True])
def test_a_connection_that_code_keeps_which_calls_asyncio_run_goes_back_first(
    server: EmbeddedServer,
    make_database: MakeDatabase,
    monkeypatch: pytest.MonkeyPatch,
    unsafe: bool,
) -> None:
    if unsafe:
        monkeypatch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "true")
    alias = make_database(server, max_size=1, timeout=5.0)

    work = asking(alias)

    async def main() -> list[int]:
        return list(await asyncio.gather(work(), work()))

    before = backend_pid(alias)
    assert asyncio.run(main()) == [before, before]
    assert backend_pid(alias) == before


def test_a_call_that_is_cancelled_meanwhile_leaves_the_caller_its_connection(
    server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    alias = make_database(server, max_size=2, timeout=5.0)

    work = asking(alias)

    async def main(turns: int) -> None:
        call = asyncio.create_task(work())
        for _ in range(turns):
            await asyncio.sleep(0)
        call.cancel()
        with suppress(asyncio.CancelledError):
            await call

    for number in range(200):
        backend_pid(alias)
        asyncio.run(main(number % 10))
        assert backend_pid(alias)
    connections[alias].close()
    pool = snapshot_of(alias)
    assert (pool.in_use, pool.counters.reclaimed) == (0, 0)


def test_it_stays_where_that_code_relies_on_it(
    server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    alias = make_database(server, max_size=2, timeout=5.0)

    work = asking(alias)

    with connections[alias].cursor() as cursor:
        cursor.execute("SET app.tenant = 'seven'")
        assert asyncio.run(work()) != backend_pid(alias)
        cursor.execute("SHOW app.tenant")
        assert cursor.fetchone() == ("seven",)
    connections[alias].close()
    with atomic(using=alias):
        before = backend_pid(alias)
        assert asyncio.run(work()) != before
        assert backend_pid(alias) == before
