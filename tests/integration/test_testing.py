from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from django.db import IntegrityError, OperationalError, connection, transaction
from django.test import TestCase

from django_pooled import retry_transaction
from django_pooled.testing import fail_next_transaction, no_waiting, terminate_backend
from tests.app.models import Note


def write() -> None:
    Note.objects.create(text="written")


def notes() -> int:
    return Note.objects.count()


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("phase", ["begin", "body", "commit"])
@pytest.mark.parametrize("sqlstate", ["40001", "40P01", None])
def test_an_ordered_fault_strikes_once_and_the_transaction_is_run_again(
    phase: str, sqlstate: str | None
) -> None:
    with no_waiting() as waits, fail_next_transaction(sqlstate, phase=phase) as fault:  # type: ignore[arg-type]
        retry_transaction(write)()
    assert (fault.struck, len(waits), notes()) == (1, 1, 1)


@pytest.mark.django_db(transaction=True)
def test_a_lost_answer_is_looked_up_and_the_callbacks_run() -> None:
    called: list[None] = []

    def announce() -> None:
        write()
        transaction.on_commit(lambda: called.append(None))

    with fail_next_transaction(None, phase="answer") as fault:
        retry_transaction(announce)()
    assert (fault.struck, len(called), notes()) == (1, 1, 1)


@pytest.mark.django_db(transaction=True)
def test_a_fault_that_is_not_retryable_is_raised() -> None:
    with fail_next_transaction("23505"), pytest.raises(IntegrityError):
        retry_transaction(write)()
    assert notes() == 0


@pytest.mark.django_db(transaction=True)
def test_as_many_faults_strike_as_were_ordered() -> None:
    with no_waiting() as waits, fail_next_transaction(times=9) as fault:
        with pytest.raises(OperationalError):
            retry_transaction(max_attempts=3)(write)()
        retry_transaction(max_attempts=7)(write)()
    assert (fault.struck, len(waits)) == (9, 2 + 6)


@pytest.mark.django_db(transaction=True)
def test_a_fault_strikes_as_often_as_ordered_in_all_threads_together() -> None:
    ready = threading.Barrier(4)

    def call(_: int) -> None:
        ready.wait(30)
        retry_transaction(write)()
        connection.close()

    with no_waiting(), fail_next_transaction(times=7) as fault, ThreadPoolExecutor(4) as threads:
        list(threads.map(call, range(4)))
    assert (fault.struck, notes()) == (7, 4)


@pytest.mark.django_db(transaction=True)
def test_of_two_orders_that_are_alike_each_ends_with_its_own_block() -> None:
    with no_waiting(), fail_next_transaction(times=2) as outer:
        with fail_next_transaction(times=2) as inner:
            pass
        retry_transaction(write)()
    assert (outer.struck, inner.struck) == (2, 0)


@pytest.mark.django_db(transaction=True)
def test_after_the_block_nothing_strikes() -> None:
    with fail_next_transaction(times=9):
        pass
    retry_transaction(write)()
    assert notes() == 1


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        ({"sqlstate": "serialization"}, "five digits"),
        ({"phase": "end"}, "expected one of"),
        ({"phase": "answer"}, "sqlstate=None"),
        ({"times": 0}, "1 or more"),
    ],
)
def test_impossible_orders_are_refused(arguments: dict[str, object], hint: str) -> None:
    with pytest.raises(ValueError, match=hint), fail_next_transaction(**arguments):  # type: ignore[arg-type]
        pass


class InATestCase(TestCase):
    """Where the transaction of the test is around everything."""

    def test_an_error_of_the_server_restarts_as_elsewhere(self) -> None:
        with no_waiting(), fail_next_transaction("40001") as fault:
            retry_transaction(write)()
        assert (fault.struck, notes()) == (1, 1)

    def test_what_needs_a_real_commit_is_refused(self) -> None:
        with pytest.raises(RuntimeError, match="TransactionTestCase"):
            fail_next_transaction(phase="commit").__enter__()
        with pytest.raises(RuntimeError, match="TransactionTestCase"):
            fail_next_transaction(None).__enter__()


@pytest.mark.django_db(transaction=True)
def test_a_session_ends_for_real_between_two_statements() -> None:
    write()
    pid = connection.connection.info.backend_pid
    terminate_backend()
    assert notes() == 1
    assert connection.connection.info.backend_pid != pid


@pytest.mark.django_db(transaction=True)
def test_there_is_no_session_to_end_without_a_connection() -> None:
    connection.close()
    with pytest.raises(RuntimeError, match="make a query"):
        terminate_backend()


class SessionOfATestCase(TestCase):
    def test_it_is_not_ended(self) -> None:
        write()
        with pytest.raises(RuntimeError, match="TransactionTestCase"):
            terminate_backend()
        assert notes() == 1
