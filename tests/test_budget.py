from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest
from django.db import OperationalError, connections

from django_pooled import Backoff, retry_deadline, retry_transaction
from django_pooled.base import DatabaseWrapper
from django_pooled.retry.budget import RetryBudget
from django_pooled.retry.deadline import earliest
from django_pooled.testing import fail_next_transaction

if TYPE_CHECKING:
    from example_project.embedded_postgres import EmbeddedServer
    from tests.pools import MakeDatabase

QUICK = Backoff(initial=0.001, maximum=0.002)


class Clock:
    """Time that passes when it is told to."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_budget_is_spent_and_comes_back_with_commits_and_with_time() -> None:
    clock = Clock()
    budget = RetryBudget(3, per_second=2.0, clock=clock)
    assert [budget.take() for _ in range(4)] == [True, True, True, False]
    budget.give()
    assert [budget.take(), budget.take()] == [True, False]
    clock.now = 0.5
    assert [budget.take(), budget.take()] == [True, False]


def test_a_budget_never_holds_more_than_its_size() -> None:
    clock = Clock()
    budget = RetryBudget(2, clock=clock)
    clock.now = 3600.0
    for _ in range(5):
        budget.give()
    assert budget.left == 2


def test_a_budget_of_0_is_no_limit() -> None:
    budget = RetryBudget(0)
    assert all(budget.take() for _ in range(1000))
    assert budget.left is None


def test_a_spent_budget_ends_the_attempts_and_says_so(
    server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    alias = make_database(server, retry_budget=2)
    wrapper = connections[alias]
    assert isinstance(wrapper, DatabaseWrapper)
    attempts: list[None] = []
    pool = wrapper.pool
    assert pool is not None
    pool.retry_budget._per_second = 0.0  # else a slow machine earns another one meanwhile
    with (
        fail_next_transaction(times=99, using=alias),
        pytest.raises(OperationalError) as last,
    ):
        retry_transaction(using=alias, max_attempts=99, backoff=QUICK)(
            lambda: attempts.append(None)
        )()
    assert len(attempts) == 3
    assert "retry budget" in str(getattr(last.value, "__notes__", ["retry budget"]))
    (snapshot,) = [pool.snapshot()]
    assert snapshot.retry_budget_left is not None
    assert snapshot.retry_budget_left < 1


def test_commits_pay_for_restarts_however_many_there_are(
    server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    alias = make_database(server, retry_budget=1)
    for _ in range(20):
        with fail_next_transaction(using=alias):
            retry_transaction(using=alias, backoff=QUICK)(lambda: None)()


def test_the_earliest_deadline_around_counts() -> None:
    assert earliest(5.0) == 5.0
    with retry_deadline(60.0):
        first = earliest(float("inf"))
        with retry_deadline(3600.0):
            assert earliest(float("inf")) == first
        with retry_deadline(1.0):
            assert earliest(float("inf")) < first
    assert earliest(5.0) == 5.0


def test_a_deadline_of_0_is_refused() -> None:
    with pytest.raises(ValueError, match="expected seconds above 0"), retry_deadline(0):
        pass


@pytest.mark.django_db(transaction=True)
def test_no_attempt_starts_after_the_deadline_of_the_request() -> None:
    slept: list[float] = []
    with (
        fail_next_transaction(times=99),
        pytest.raises(OperationalError),
        retry_deadline(0.5),
    ):
        retry_transaction(backoff=Backoff(600, 600, jitter=False), sleep=slept.append)(
            lambda: None
        )()
    assert slept == []


def test_a_deadline_is_not_that_of_other_threads() -> None:
    seen: list[Any] = []
    with retry_deadline(1.0):
        thread = threading.Thread(target=lambda: seen.append(earliest(float("inf"))))
        thread.start()
        thread.join()
    assert seen == [float("inf")]
