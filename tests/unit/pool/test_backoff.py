from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from django_pooled.pool.backoff import Backoff, retry_until

if TYPE_CHECKING:
    from collections.abc import Iterator


def test_waits_are_drawn_from_zero_to_a_bound_that_doubles_up_to_the_cap() -> None:
    backoff = Backoff(initial=0.1, maximum=0.5)
    for attempt, bound in [(1, 0.1), (2, 0.2), (3, 0.4), (4, 0.5), (50, 0.5), (5000, 0.5)]:
        waits = [backoff.wait(attempt) for _ in range(500)]
        assert 0 <= min(waits) < bound / 4
        assert bound * 3 / 4 < max(waits) <= bound


def test_without_jitter_a_wait_is_the_bound_itself() -> None:
    backoff = Backoff(initial=0.1, maximum=0.5, jitter=False)
    assert [backoff.wait(attempt) for attempt in (1, 2, 3, 4)] == [0.1, 0.2, 0.4, 0.5]


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf"), 10**400])
@pytest.mark.parametrize("name", ["initial", "maximum"])
def test_seconds_that_cannot_be_waited_for_are_refused(name: str, seconds: float) -> None:
    with pytest.raises(ValueError, match=f"Backoff's {name} is .*expected a number of seconds"):
        Backoff(**{name: seconds})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "value"), [("initial", "0.1"), ("maximum", None), ("maximum", True), ("jitter", 0)]
)
def test_values_of_a_wrong_type_are_refused(name: str, value: object) -> None:
    with pytest.raises(TypeError, match=f"Backoff's {name} is .*; expected"):
        Backoff(**{name: value})  # type: ignore[arg-type]


def test_without_waits() -> None:
    assert Backoff(initial=0, maximum=0).wait(3) == 0


def test_an_attempt_is_repeated_until_it_succeeds() -> None:
    outcomes: Iterator[Exception | str] = iter([OSError("1"), OSError("2"), "connected"])

    def attempt() -> str:
        outcome = next(outcomes)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    asked: list[tuple[int, str]] = []

    def wait(number: int, error: BaseException) -> float:
        asked.append((number, str(error)))
        return 0.001

    result = retry_until(threading.Event(), attempt, wait=wait, worth_retrying=lambda _: True)
    assert result == "connected"
    assert asked == [(1, "1"), (2, "2")]


def test_an_error_that_is_not_worth_retrying_ends_the_series_as_it_is() -> None:
    calls: list[None] = []

    def attempt() -> None:
        calls.append(None)
        raise ValueError("wrong password")

    with pytest.raises(ValueError, match="wrong password"):
        retry_until(
            threading.Event(),
            attempt,
            wait=lambda number, error: 600.0,
            worth_retrying=lambda error: False,
        )
    assert len(calls) == 1


def test_stopping_cuts_a_wait_short() -> None:
    stopped, failed = threading.Event(), threading.Event()
    errors = []

    def attempt() -> None:
        failed.set()
        raise OSError("refused")

    def series() -> None:
        try:
            retry_until(
                stopped,
                attempt,
                wait=lambda number, error: 600.0,
                worth_retrying=lambda _: True,
            )
        except OSError as error:
            errors.append(str(error))

    thread = threading.Thread(target=series)
    thread.start()
    assert failed.wait(10)
    stopped.set()
    thread.join(10)
    assert not thread.is_alive()
    assert errors == ["refused"]
