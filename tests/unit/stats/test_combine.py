"""Counters of pools, or of moments, combined figure by figure."""

from __future__ import annotations

from collections import Counter
from operator import add, sub
from typing import TYPE_CHECKING, Any

import pytest

from django_pooled.stats.combine import combine, total
from django_pooled.stats.counters import Counters
from django_pooled.stats.histogram import Histogram

if TYPE_CHECKING:
    from collections.abc import Callable


def recorded(*seconds: float) -> Histogram:
    made = Histogram()
    for one in seconds:
        made.record(one)
    return made


@pytest.mark.parametrize(("how", "expected"), [(add, 9), (sub, 5), (max, 7)])
def test_numbers_are_combined(how: Callable[[Any, Any], Any], expected: int) -> None:
    assert combine(Counters(connects=7), Counters(connects=2), how).connects == expected


def test_what_is_counted_by_kind_is_combined_by_kind() -> None:
    one = Counters(restarts=Counter({"40001": 3}))
    other = Counters(restarts=Counter({"40001": 1, "lost": 2}))
    assert combine(one, other, add).restarts == {"40001": 4, "lost": 2}
    assert combine(other, one, max).restarts == {"40001": 3, "lost": 2}


def test_durations_are_combined_by_size_and_the_longest_stays_the_longest() -> None:
    now, then = Counters(use=recorded(0.001, 9.0, 0.5)), Counters(use=recorded(0.001, 9.0))
    since = combine(now, then, sub).use
    assert (since.count, since.longest) == (1, 9.0)
    assert since.total == pytest.approx(0.5)
    together = combine(now, then, add).use
    assert (together.count, together.longest) == (5, 9.0)


def test_neither_of_the_two_is_changed() -> None:
    one = Counters(checkouts=1, wait=recorded(1.0), closed=Counter({"idle": 1}))
    combine(one, one, add)
    assert (one.checkouts, one.wait.count, one.closed["idle"]) == (1, 1, 1)


def test_the_total_of_nothing_is_zero() -> None:
    assert total([]).timeouts == 0
    assert total([Counters(timeouts=1), Counters(timeouts=2)]).timeouts == 3
