from __future__ import annotations

import asyncio
import contextvars
import pickle
import sys
import threading
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from asgiref.sync import sync_to_async
from django.db import OperationalError

from django_pooled import DeadlineExceeded, deadline, retry_deadline
from django_pooled.pool.deadline import GRACE, Deadline, current, ends_at, grace

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

INFINITE = float("inf")


def test_without_a_deadline_there_is_no_end() -> None:
    assert (current.get(), ends_at(), deadline.left()) == (None, INFINITE, INFINITE)


def test_the_earliest_of_nested_deadlines_counts() -> None:
    with deadline(60.0):
        first = ends_at()
        with deadline(3600.0):
            assert ends_at() == first
        with deadline(1.0):
            assert ends_at() < first
            assert 0 < deadline.left() <= 1.0
        assert ends_at() == first
    assert ends_at() == INFINITE


def test_a_deadline_around_that_is_ended_ends_the_ones_within() -> None:
    with deadline(60.0):
        outer = current.get()
        with deadline(30.0):
            inner = current.get()
            assert inner is not None
            assert outer is not None
            assert not inner.has_ended
            outer.end("the client has gone")
            assert (inner.has_ended, inner.reason, deadline.left()) == (
                True,
                "the client has gone",
                0.0,
            )


def test_a_deadline_that_has_ended_keeps_its_reason() -> None:
    ended = Deadline(-1.0)
    ended.end("the client has gone")
    assert ended.reason == "the deadline of -1 s ended"


def test_an_early_end_wakes_a_thread_that_sleeps_under_a_deadline_within() -> None:
    outer = Deadline(INFINITE)
    inner, asleep = Deadline(INFINITE, outer), threading.Event()

    def sleep_long() -> None:
        asleep.set()
        inner.sleep(3600.0)

    thread = threading.Thread(target=sleep_long, daemon=True)
    thread.start()
    assert asleep.wait(10.0)
    outer.end("the client has gone")
    thread.join(10.0)
    assert not thread.is_alive()
    # Nor does one sleep that begins after it.
    inner.sleep(3600.0)


def test_a_decorated_function_has_a_deadline_of_its_own_for_each_call() -> None:
    @deadline(60.0)
    def ends(number: int = 0) -> tuple[int, float]:
        """Tell."""
        return number, ends_at()

    (one, first), (two, second) = ends(1), ends(number=2)
    assert (one, two, ends.__name__, ends.__doc__) == (1, 2, "ends", "Tell.")
    assert monotonic() < first < second < INFINITE
    assert ends_at() == INFINITE


def test_a_decorated_coroutine_has_its_deadline_while_it_runs_and_so_do_its_threads() -> None:
    @deadline(60.0)
    async def ends() -> tuple[float, float, float]:
        await asyncio.sleep(0)
        return ends_at(), await sync_to_async(ends_at)(), await asyncio.to_thread(ends_at)

    async def main() -> tuple[float, ...]:
        pending = ends()
        before = ends_at()
        return (before, *await pending, ends_at())

    before, *within, after = asyncio.run(main())
    assert before == after == INFINITE
    assert len(set(within)) == 1
    assert within[0] < INFINITE


def test_a_generator_is_refused_since_it_would_run_after_the_deadline() -> None:
    def rows() -> Iterator[int]:
        yield 1

    async def pages() -> Any:
        yield 1

    for function in (rows, pages):
        with pytest.raises(TypeError, match="use it as a block in the generator"):
            deadline(1.0)(function)


def _numbers() -> Generator[int, None, None]:
    with deadline(30.0):
        yield 1
        yield 2


def test_generators_that_end_in_another_order_leave_no_deadline_behind() -> None:
    with deadline(60.0):
        around = ends_at()
        first, second, third = _numbers(), _numbers(), _numbers()
        assert [next(first), next(second), next(third)] == [1, 1, 1]
        assert ends_at() < around
        for generator in (second, first, third):
            assert list(generator) == [2]
        assert ends_at() == around
    assert current.get() is None


def test_a_generator_that_another_thread_closes_leaves_no_deadline_behind() -> None:
    def leave_one_behind() -> float:
        for _ in range(3):
            generator = _numbers()
            next(generator)
            thread = threading.Thread(target=generator.close)
            thread.start()
            thread.join()
        with deadline(60.0):
            left = deadline.left()
        assert ends_at() == INFINITE
        return left

    # In a context of its own, which is left as a thread's would be.
    assert contextvars.copy_context().run(leave_one_behind) > 30.0


def test_an_endless_deadline_around_still_tells_that_the_client_has_gone() -> None:
    outer = Deadline(INFINITE, is_gone=lambda: True)
    token = current.set(outer)
    try:
        generators = _numbers(), _numbers()
        for generator in generators:
            next(generator)
        for generator in generators:
            generator.close()
        assert current.get() is outer
        with deadline(60.0):
            present = current.get()
            assert present is not None
            assert present.is_gone is outer.is_gone
    finally:
        current.reset(token)


@pytest.mark.parametrize("seconds", [0, -1.0, float("nan"), 10**400])
def test_seconds_that_are_not_above_0_are_refused(seconds: float) -> None:
    with pytest.raises(ValueError, match="expected seconds above 0"):
        deadline(seconds)


@pytest.mark.parametrize("seconds", ["5", None, True])
def test_seconds_that_are_no_number_are_refused(seconds: Any) -> None:
    with pytest.raises(TypeError, match="expected seconds above 0"):
        deadline(seconds)


def test_a_block_cannot_begin_twice() -> None:
    made = deadline(1.0)
    with made, pytest.raises(RuntimeError, match="make another one"):
        made.__enter__()
    with made:
        assert ends_at() < INFINITE


def test_the_old_name_stands_for_the_same() -> None:
    assert retry_deadline is deadline


def test_a_deadline_is_not_that_of_threads_that_the_code_starts() -> None:
    # But where Python has threads begin with the context of their starter.
    inherits = getattr(sys.flags, "thread_inherit_context", False)
    seen: list[float] = []
    with deadline(1.0):
        thread = threading.Thread(target=lambda: seen.append(ends_at()))
        thread.start()
        thread.join()
        copied = contextvars.copy_context()
    assert [end < INFINITE for end in seen] == [inherits]
    assert copied.run(ends_at) < INFINITE


def test_what_ends_something_has_a_little_longer_for_the_same_reason() -> None:
    with deadline(0.001):
        sleep(0.002)
        assert deadline.left() == 0.0
        with grace():
            present = current.get()
            assert present is not None
            assert 0 < deadline.left() <= GRACE
            assert present.reason == "the deadline of 0.001 s ended"
        assert deadline.left() == 0.0
    with deadline(60.0):
        first = ends_at()
        with grace():
            assert ends_at() == first
    with grace():
        assert ends_at() == INFINITE


def test_the_error_is_djangos_and_psycopgs_and_can_be_sent_to_another_process() -> None:
    error = pickle.loads(pickle.dumps(DeadlineExceeded("the deadline of 5 s ended")))
    assert isinstance(error, OperationalError)
    assert isinstance(error, psycopg.errors.QueryCanceled)
    assert (str(error), error.sqlstate) == ("the deadline of 5 s ended", "57014")
