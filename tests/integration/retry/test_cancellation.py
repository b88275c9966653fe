"""Decorated coroutines that are cancelled, at each point at which they wait."""

from __future__ import annotations

import asyncio
import gc
import random
import warnings
from collections import Counter
from contextvars import copy_context
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from asgiref.sync import sync_to_async
from django.db import connections, transaction

from django_pooled import AmbiguousCommit, Backoff, registry, retry_transaction
from tests.support.tasks import run, until
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from embedded_postgres import EmbeddedServer
    from tests.servers.fault_proxy import FaultProxy
    from tests.support.pools import MakeDatabase

SLOW = "SELECT pg_sleep(600)"


class Votes:
    """A table, seen through a connection of its own."""

    def __init__(self, server: EmbeddedServer, alias: str) -> None:
        self.alias = alias
        self._operator = psycopg.connect(**server.parameters(), autocommit=True)
        self._operator.execute("DROP TABLE IF EXISTS vote")
        self._operator.execute("CREATE TABLE vote (name text)")

    @property
    def names(self) -> list[str]:
        return [name for (name,) in self.ask("SELECT name FROM vote ORDER BY name")]

    def ask(self, query: str) -> list[Any]:
        return self._operator.execute(query).fetchall()

    def execute(self, query: str) -> None:
        self._operator.execute(query)

    def is_under_way(self, query: str) -> bool:
        """Tell whether the server runs a statement."""
        active = (
            "SELECT 1 FROM pg_stat_activity WHERE state = 'active' AND query = '%s'"
            " AND pid != pg_backend_pid()"
        )
        return bool(self.ask(active % query))

    async def cast(self, name: str) -> None:
        await self.send(f"INSERT INTO vote VALUES ('{name}')")

    async def send(self, query: str) -> None:
        """Run a statement as the ORM does."""

        def send() -> None:
            with connections[self.alias].cursor() as cursor:
                cursor.execute(query)

        await sync_to_async(send)()

    @property
    def gauges(self) -> tuple[int, int]:
        """Return how many connections are in use, and how many threads wait for one."""
        pools = [pool for pool in registry.snapshots() if pool.alias == self.alias]
        return sum(pool.in_use for pool in pools), sum(pool.waiting for pool in pools)

    def close(self) -> None:
        self._operator.close()


@pytest.fixture
def votes(server: EmbeddedServer, make_database: MakeDatabase) -> Iterator[Votes]:
    made = Votes(server, make_database(server, max_size=2, timeout=600.0))
    yield made
    made.close()


async def cancelled(task: asyncio.Task[Any], *, times: int = 1) -> None:
    for _ in range(times):
        task.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 20.0)


@pytest.mark.parametrize("times", [1, 3])
def test_amid_a_statement_it_is_cancelled_on_the_server(votes: Votes, times: int) -> None:
    @retry_transaction(using=votes.alias)
    async def work() -> None:
        await votes.cast("one")
        await votes.send(SLOW)

    async def main() -> None:
        task = asyncio.create_task(work())
        await until(lambda: votes.is_under_way(SLOW))
        await cancelled(task, times=times)
        assert not votes.is_under_way(SLOW)
        assert votes.gauges == (0, 0)

    run(main)
    assert votes.names == []


def test_amid_something_else_that_it_awaits(votes: Votes) -> None:
    waits = asyncio.Event()
    seen = []

    @retry_transaction(using=votes.alias)
    async def work() -> None:
        await votes.cast("one")
        try:
            waits.set()
            await asyncio.sleep(600)
        finally:
            seen.append("cleaned up")

    async def main() -> None:
        task = asyncio.create_task(work())
        await waits.wait()
        await cancelled(task)
        assert votes.gauges == (0, 0)

    run(main)
    assert votes.names == []
    assert seen == ["cleaned up"]


def test_while_it_waits_for_a_connection(votes: Votes) -> None:
    leave = asyncio.Event()

    @retry_transaction(using=votes.alias)
    async def work(name: str) -> None:
        await votes.cast(name)
        await leave.wait()

    async def main() -> None:
        tasks = [asyncio.create_task(work(name)) for name in ("one", "two")]
        await until(lambda: votes.gauges == (2, 0))
        late = asyncio.create_task(work("three"))
        await until(lambda: votes.gauges == (2, 1))
        await cancelled(late)
        assert votes.gauges == (2, 0)
        leave.set()
        await asyncio.gather(*tasks)

    run(main)
    assert votes.names == ["one", "two"]


def test_while_it_waits_for_another_attempt(votes: Votes) -> None:
    failed = asyncio.Event()

    @retry_transaction(
        using=votes.alias, deadline=9000.0, backoff=Backoff(initial=600.0, maximum=600.0)
    )
    async def work() -> None:
        await votes.cast("one")
        failed.set()
        await votes.send("DO $$ BEGIN RAISE EXCEPTION 'made' USING ERRCODE = '40001'; END $$")

    async def main() -> None:
        task = asyncio.create_task(work())
        await failed.wait()
        await until(lambda: votes.gauges == (0, 0))
        await cancelled(task)
        assert votes.gauges == (0, 0)

    run(main)
    assert votes.names == []


def test_before_it_has_begun(votes: Votes) -> None:
    @retry_transaction(using=votes.alias)
    async def work() -> None:
        raise AssertionError("is not to be run")

    async def main() -> None:
        task = asyncio.create_task(work())
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        # As the thread has begun, perhaps.
        task = asyncio.create_task(work())
        await asyncio.sleep(0)
        await cancelled(task)
        assert votes.gauges == (0, 0)

    run(main)


def test_amid_commit_the_commit_is_waited_for(votes: Votes) -> None:
    votes.execute("CREATE OR REPLACE FUNCTION pause() RETURNS trigger LANGUAGE plpgsql AS "
                  "$$ BEGIN PERFORM pg_sleep(1); RETURN NULL; END $$")  # fmt: skip
    votes.execute("CREATE CONSTRAINT TRIGGER late AFTER INSERT ON vote DEFERRABLE "
                  "INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION pause()")  # fmt: skip
    called = []

    @retry_transaction(using=votes.alias)
    async def work() -> None:
        await sync_to_async(transaction.on_commit)(lambda: called.append(1), using=votes.alias)
        await votes.cast("one")

    async def main() -> None:
        task = asyncio.create_task(work())
        await until(lambda: votes.is_under_way("COMMIT"))
        await cancelled(task)
        assert votes.gauges == (0, 0)
        assert votes.names == ["one"]

    run(main)
    assert called == [1]


def test_amid_a_commit_that_is_lost_its_outcome_is_found_out(
    server: EmbeddedServer, make_database: MakeDatabase, proxy: FaultProxy
) -> None:
    alias = make_database(server, through=proxy, max_size=2)
    votes = Votes(server, alias)
    votes.execute("CREATE OR REPLACE FUNCTION pause() RETURNS trigger LANGUAGE plpgsql AS "
                  "$$ BEGIN PERFORM pg_sleep(1); RETURN NULL; END $$")  # fmt: skip
    votes.execute("CREATE CONSTRAINT TRIGGER late AFTER INSERT ON vote DEFERRABLE "
                  "INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION pause()")  # fmt: skip
    names = iter(["one", "two"])
    checks = {"one": "xid", "two": "raise"}

    def attempt(commit_check: str) -> Any:
        @retry_transaction(using=alias, commit_check=commit_check)
        async def work(name: str) -> None:
            await votes.cast(name)

        return work

    async def main() -> None:
        for name in names:
            task = asyncio.create_task(attempt(checks[name])(name))
            await until(lambda: votes.is_under_way("COMMIT"))
            task.cancel()
            await asyncio.sleep(0)
            votes.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE state = 'active' AND query = 'COMMIT' AND pid != pg_backend_pid()"
            )
            expected = asyncio.CancelledError if name == "one" else AmbiguousCommit
            with pytest.raises(expected):
                await asyncio.wait_for(task, 20.0)
            assert votes.gauges == (0, 0)

    run(main)
    votes.close()


def test_a_time_limit_within_the_coroutine_ends_its_statement(votes: Votes) -> None:
    @retry_transaction(using=votes.alias)
    async def work() -> None:
        await votes.cast("one")
        await asyncio.wait_for(votes.send(SLOW), 0.2)

    async def main() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(work(), 20.0)
        assert votes.gauges == (0, 0)
        assert not votes.is_under_way(SLOW)

    run(main)
    assert votes.names == []


def test_a_time_limit_around_the_call(votes: Votes) -> None:
    @retry_transaction(using=votes.alias)
    async def work() -> None:
        await votes.cast("one")
        await votes.send(SLOW)

    async def main() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(work(), 0.5)
        assert votes.gauges == (0, 0)
        assert not votes.is_under_way(SLOW)

    run(main)
    assert votes.names == []


def test_a_coroutine_that_handles_its_cancellation_may_commit(votes: Votes) -> None:
    waits = asyncio.Event()

    @retry_transaction(using=votes.alias)
    async def work() -> str:
        await votes.cast("one")
        try:
            waits.set()
            await asyncio.sleep(600)
        except asyncio.CancelledError:
            await votes.cast("two")
        return "in time"

    async def main() -> str:
        task = asyncio.create_task(work())
        await waits.wait()
        task.cancel()
        return await task

    assert run(main) == "in time"
    assert votes.names == ["one", "two"]


def test_a_task_that_fails_ends_the_statement_of_another(votes: Votes) -> None:
    @retry_transaction(using=votes.alias)
    async def work() -> None:
        async def fail() -> None:
            await until(lambda: votes.is_under_way(SLOW))
            raise LookupError("no such candidate")

        await asyncio.gather(votes.send(SLOW), fail())

    async def main() -> None:
        with pytest.raises(LookupError, match="no such candidate"):
            await asyncio.wait_for(work(), 20.0)
        assert votes.gauges == (0, 0)

    run(main)


def test_calls_that_are_cancelled_at_random_take_effect_once_or_not_at_all(
    server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    alias = make_database(server, max_size=4, timeout=60.0, retry_budget=0)
    votes, chance = Votes(server, alias), random.Random(7)
    votes.execute("INSERT INTO vote VALUES ('total')")
    votes.execute("ALTER TABLE vote ADD number int DEFAULT 0")
    ends: Counter[str] = Counter()

    @retry_transaction(using=alias, max_attempts=50, backoff=Backoff(0.001, 0.01))
    async def work(name: str) -> None:
        await votes.cast(name)
        await asyncio.sleep(0.001 * chance.random())
        await votes.send("UPDATE vote SET number = number + 1 WHERE name = 'total'")

    # Seconds; as many are cancelled as return, however fast the machine is.
    patience = 0.03

    async def one(number: int) -> None:
        nonlocal patience
        task = asyncio.create_task(work(f"{number}"))
        await asyncio.wait([task], timeout=chance.random() * 2 * patience)
        task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            ends["cancelled"] += 1
            patience *= 1.1
            assert votes.names.count(f"{number}") <= 1
        else:
            ends["returned"] += 1
            patience /= 1.1
            assert votes.names.count(f"{number}") == 1

    async def end_sessions() -> None:
        while True:
            await asyncio.sleep(0.05)
            await asyncio.to_thread(kill_some)

    def kill_some() -> None:
        with psycopg.connect(**server.parameters(), autocommit=True) as operator:
            operator.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid IN ("
                " SELECT pid FROM pg_stat_activity WHERE state = 'idle in transaction' LIMIT 1)"
            )

    async def main() -> None:
        killer = asyncio.create_task(end_sessions())
        numbers = iter(range(300))

        async def caller() -> None:
            for number in numbers:
                await one(number)

        await asyncio.gather(*[caller() for _ in range(12)])
        killer.cancel()
        assert votes.gauges == (0, 0)

    run(main)
    assert ends["cancelled"] > 20
    assert ends["returned"] > 20
    assert votes.ask("SELECT number FROM vote WHERE name = 'total'") == [(len(votes.names) - 1,)]
    votes.close()


@pytest.mark.parametrize("amid", ["SELECT pg_sleep(0.2)", None])
def test_an_event_loop_that_is_closed_leaves_nothing_behind(votes: Votes, amid: str | None) -> None:
    # What asgiref leaves in the context of this code must not be in that of other tests.
    copy_context().run(_closes_its_loop, votes, amid)


def _closes_its_loop(votes: Votes, amid: str | None) -> None:
    @retry_transaction(using=votes.alias)
    async def work(name: str, amid: str | None) -> None:
        await votes.cast(name)
        waits.append(name)
        if amid is not None:
            await votes.send(amid)
        elif name == "one":
            await asyncio.sleep(600)

    async def main() -> asyncio.Task[None]:
        task = asyncio.create_task(work("one", amid))
        await until(lambda: waits if amid is None else votes.is_under_way(amid))
        return task

    waits: list[str] = []
    loop = asyncio.new_event_loop()
    task = loop.run_until_complete(main())
    loop.close()
    del task

    def is_over() -> bool:
        # The task is destroyed as it waits, which Python tells, and its coroutine closed in the
        # context of this code, to which asgiref gives the task's.
        gc.collect()
        return votes.gauges == (0, 0)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wait_until(is_over)
    with connections[votes.alias].cursor() as cursor:
        cursor.execute("SELECT 1")
    connections[votes.alias].close()
    run(lambda: work("two", None))
    assert votes.names == ["two"]
