from __future__ import annotations

import threading
from functools import partial
from itertools import takewhile
from typing import Any

import pytest

from django_pooled.retry.budget import MOST_FUNCTIONS, RetryBudget
from django_pooled.retry.retried import Retried


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
    budget.give()


def taken(budget: RetryBudget, name: str) -> int:
    """Take what there is for a function."""
    return sum(takewhile(bool, (budget.take(name) for _ in range(1000))))


def test_a_function_that_always_fails_spends_its_own_part_alone() -> None:
    budget = RetryBudget(100, per_second=0.0)
    assert taken(budget, "hog") == 100
    assert budget.left == 0
    assert not budget.take("hog")
    assert budget.take("other")


def test_all_functions_together_are_bounded_and_a_new_one_always_finds_one() -> None:
    budget = RetryBudget(100, per_second=0.0)
    found = [taken(budget, f"hog {number}") for number in range(5)]
    assert sorted(found, reverse=True) == found
    assert budget.take("other")
    found = [taken(budget, f"more {number}") for number in range(1000)]
    assert sum(found) < 200
    assert not budget.take("last")


@pytest.mark.parametrize("size", [2, 3, 10])
def test_a_small_budget_has_one_for_another_function_too(size: int) -> None:
    budget = RetryBudget(size, per_second=0.0)
    assert taken(budget, "hog") == size
    assert budget.take("other")


def test_a_budget_of_one_is_one_for_all() -> None:
    budget = RetryBudget(1, per_second=0.0)
    assert [budget.take("one"), budget.take("other")] == [True, False]


def test_commits_pay_for_their_own_function() -> None:
    budget = RetryBudget(2, per_second=0.0)
    assert taken(budget, "hog") == 2
    for _ in range(10):
        budget.give("other")
    assert not budget.take("hog")
    budget.give("hog")
    assert budget.take("hog")


def test_functions_of_one_name_are_one_however_they_are_made() -> None:
    budget = RetryBudget(2, per_second=0.0)
    policy: Any = None
    made = [Retried(partial(lambda: None), policy) for _ in range(3)]
    assert [budget.take(each.full_name) for each in made] == [True, True, False]


def test_functions_without_end_take_no_memory_without_end() -> None:
    clock = Clock()
    budget = RetryBudget(1_000_000, per_second=1.0, clock=clock)
    for number in range(MOST_FUNCTIONS + 200):
        assert budget.take(str(number))
    assert len(budget._owed) <= MOST_FUNCTIONS + 1
    for number in range(MOST_FUNCTIONS + 200):
        budget.give(str(number))
    clock.now = 5000.0
    assert budget.left == 1_000_000
    budget.give("other")
    assert not budget._owed


def test_no_restart_is_lost_or_made_up_among_many_threads() -> None:
    budget = RetryBudget(500, per_second=0.0)
    found: list[int] = []

    def work(number: int) -> None:
        found.append(sum(budget.take(f"{number % 3}") for _ in range(400)))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 500 < sum(found) <= 1000
