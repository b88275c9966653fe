"""Durations in buckets, and the percentiles that are read from them."""

from __future__ import annotations

import json
import random
from itertools import pairwise

import pytest

from django_pooled.stats.histogram import BOUNDS, Histogram


def recorded(*seconds: float) -> Histogram:
    made = Histogram()
    for duration in seconds:
        made.record(duration)
    return made


def test_bounds_rise_from_a_tenth_of_a_millisecond_to_over_a_minute() -> None:
    assert list(BOUNDS) == sorted(set(BOUNDS))
    assert (BOUNDS[0], BOUNDS[-1]) == (0.0001, 100.0)
    assert all(after / before < 1.6 for before, after in pairwise(BOUNDS))


def test_a_duration_counts_in_the_bucket_whose_bound_it_does_not_exceed() -> None:
    made = recorded(BOUNDS[3], BOUNDS[3] * 1.0001, 0.0, 1000.0)
    assert (made.buckets[3], made.buckets[4], made.buckets[0], made.buckets[-1]) == (1, 1, 1, 1)
    assert (made.count, made.longest) == (4, 1000.0)
    assert made.total == pytest.approx(1000.0 + 2.0001 * BOUNDS[3])


@pytest.mark.parametrize("share", [0.5, 0.95, 0.99])
def test_a_percentile_is_within_a_fifth_of_the_truth(share: float) -> None:
    dice = random.Random(6)
    durations = sorted(dice.lognormvariate(-5.0, 1.5) for _ in range(5000))
    truth = durations[int(share * len(durations))]
    assert recorded(*durations).quantile(share) == pytest.approx(truth, rel=0.2)


def test_no_percentile_exceeds_the_longest() -> None:
    made = recorded(0.0101)
    for share in (0.0, 0.5, 0.99, 1.0):
        found = made.quantile(share)
        assert found is not None
        assert 0.01 < found <= 0.0101


def test_beyond_the_last_bound_a_percentile_is_the_longest() -> None:
    assert recorded(0.001, 250.0, 300.0).quantile(0.99) == 300.0


def test_without_durations_there_is_no_percentile() -> None:
    assert Histogram().quantile(0.99) is None


def test_a_report_survives_json() -> None:
    made = recorded(0.001, 0.25)
    read = Histogram.from_report(json.loads(json.dumps(made.as_report())))
    assert (read.buckets, read.total, read.longest) == (made.buckets, made.total, made.longest)
    assert made.as_report()["count"] == 2
