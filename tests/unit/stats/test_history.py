"""What a process remembers of its pools: differences, worst moments, and how much of both."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest

from django_pooled.stats import history
from django_pooled.stats.history import INTERVAL, History
from django_pooled.stats.snapshot import Counters, PoolSnapshot
from tests.support.publisher import snapshot


class Clock:
    """Time that the test moves."""

    def __init__(self) -> None:
        self.now = 1_000_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(history, "time", made)
    monkeypatch.setattr(history, "monotonic", made)
    return made


class Pools:
    """Pools that are looked at, as the test says they are."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.now: list[PoolSnapshot] = []
        self.pauses: list[float] = []
        self.history = History(self.look)

    def look(self, seconds: float) -> list[PoolSnapshot]:
        self.pauses.append(seconds)
        return self.now

    def at(self, second: float, *pools: PoolSnapshot) -> None:
        """Have them looked at, so many seconds after the beginning."""
        self.clock.now = 1_000_000_000.0 + second
        self.now = list(pools)
        self.history.sample()

    @property
    def kept(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.history.encoded(0.0))
        return found


def pool(checkouts: int = 0, **figures: Any) -> PoolSnapshot:
    restarts: Counter[str] = Counter({"40001": figures.pop("restarts", 0)})
    counters = Counters(checkouts=checkouts, restarts=restarts)
    for _ in range(checkouts):
        counters.wait.record(0.01)
    return snapshot(id="one", counters=counters, **figures)


def test_an_interval_has_what_was_counted_in_it_and_the_worst_moment(clock: Clock) -> None:
    pools = Pools(clock)
    pools.at(1, pool(3))
    holder = {"state": "in use", "since": 2.5, "by": "shop.views.cart", "backend_pid": 7}
    pools.at(2, pool(4, waiting=3, longest_waiting=1.5, in_use=1, connections=[holder]))
    pools.at(3, pool(9, restarts=2))
    pools.at(5.1, pool(10, restarts=2))
    pools.at(10.2, pool(12, restarts=5))
    first, second = pools.kept
    assert (first["time"], first["seconds"]) == (1_000_000_000.0, pytest.approx(5.1))
    (seen,) = first["pools"]
    assert (seen["waiting"], seen["longest_waiting"], seen["in_use"]) == (3, 1.5, 1)
    assert (seen["checkouts"], seen["restarts"]) == (10, {"40001": 2})
    assert seen["connections"] == [holder]
    assert (second["pools"][0]["checkouts"], second["pools"][0]["restarts"]) == (2, {"40001": 3})
    assert second["pools"][0]["wait"]["count"] == 2
    # Nothing that a reader takes for granted is kept.
    assert "connections" not in second["pools"][0]
    assert "timeouts" not in second["pools"][0]


def test_an_error_of_an_earlier_interval_is_not_repeated(clock: Clock) -> None:
    pools = Pools(clock)
    pools.at(5, pool(last_error="refused", last_error_age=1.0))
    pools.at(10, pool(last_error="refused", last_error_age=9.0))
    first, second = pools.kept
    assert first["pools"][0]["last_error"] == "refused"
    assert "last_error" not in second["pools"][0]


def test_it_looks_every_second_while_a_pool_is_used_and_else_once_in_an_interval(
    clock: Clock,
) -> None:
    pools = Pools(clock)
    assert pools.history.pause == 1.0
    pools.at(1, pool(3))
    assert pools.history.pause == 1.0
    pools.at(2, pool(3))
    assert pools.history.pause == 3.0
    pools.at(5, pool(3, in_use=1))
    assert pools.history.pause == 1.0
    assert pools.pauses == [1.0, 1.0, 3.0]


def test_it_remembers_a_quarter_of_an_hour_and_at_most_so_many_bytes(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    pools = Pools(clock)
    for number in range(1, 241):
        pools.at(number * INTERVAL, pool(number))
    assert len(pools.kept) == 181
    assert pools.kept[-1]["time"] - pools.kept[0]["time"] == 900.0
    since = 1_000_000_000.0 + 239 * INTERVAL
    assert len(json.loads(pools.history.encoded(since))) == 1
    monkeypatch.setattr(history, "MOST_BYTES", 2000)
    pools.at(241 * INTERVAL, pool(241))
    assert len(pools.history.encoded(0.0)) <= 2000 + len(pools.kept) + 2
    assert pools.kept[-1]["time"] == 1_000_000_000.0 + 240 * INTERVAL


def test_only_the_longest_holders_of_a_pool_with_waiters_are_kept(clock: Clock) -> None:
    pools = Pools(clock)
    held = [{"state": "in use", "since": float(n), "backend_pid": n} for n in range(1, 31)]
    pools.at(5, pool(waiting=1, in_use=30, connections=held))
    kept = [one["backend_pid"] for one in pools.kept[0]["pools"][0]["connections"]]
    assert kept == list(range(30, 10, -1))


def test_where_a_look_takes_long_there_are_fewer(clock: Clock) -> None:
    pools = Pools(clock)

    def slow(seconds: float) -> list[PoolSnapshot]:
        clock.now += 0.25
        return [pool(in_use=1)]

    crowded = History(slow)
    crowded.sample()
    assert crowded.pause == 25.0
    assert pools.history.pause == 1.0


def test_the_interval_under_way_is_told_up_to_the_latest_look(clock: Clock) -> None:
    pools = Pools(clock)
    pools.at(5, pool(3))
    pools.at(7, pool(10))
    first, under_way = pools.kept
    assert first["pools"][0]["checkouts"] == 3
    assert (under_way["time"], under_way["seconds"]) == (1_000_000_005.0, 2.0)
    assert under_way["pools"][0]["checkouts"] == 7
