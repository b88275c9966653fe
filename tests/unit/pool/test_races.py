"""Threads that do something at the same moment, one of them in the midst of it."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any
from weakref import ref

from django_pooled.backend.options import parse
from django_pooled.pool.pool import Pool
from django_pooled.pool.psycopg_pool_private import _Start
from django_pooled.pool.session import Session
from django_pooled.pool.slots import Slot, Slots
from tests.support.threads import at_once

if TYPE_CHECKING:
    from collections.abc import Callable

PATIENCE = 30.0


def opened() -> Pool:
    options = {"min_size": 0, "stats_dir": False}
    pool = Pool(
        "races", parse("races", {"OPTIONS": {"pool": options}}), dict, lambda _: None, "nowhere"
    )
    pool.open()
    return pool


class ClosedFirst:
    """The tasks of a pool that is closed as a task comes, before that is in the queue."""

    def __init__(self, tasks: Any, close: Callable[[], None]) -> None:
        self._tasks = tasks
        self._close = close

    def put_nowait(self, task: Any) -> None:
        if isinstance(task, _Start):
            self._close()
        self._tasks.put_nowait(task)


def test_what_is_queued_behind_the_stop_of_the_workers_is_done_all_the_same() -> None:
    pool, done = opened(), threading.Event()
    inner = pool._pool
    inner._tasks = ClosedFirst(inner._tasks, inner.close)  # type: ignore[assignment]
    inner.run_later(done.set)
    assert done.wait(PATIENCE)
    pool.close()


def test_what_a_worker_and_the_caller_both_have_is_done_once() -> None:
    pool, done = opened(), threading.Semaphore(0)
    task = _Start(pool._pool, _Counted(done), "once")  # type: ignore[arg-type]
    at_once(task.run, 8)
    assert done.acquire(timeout=PATIENCE)
    assert not done.acquire(blocking=False)
    pool.close()


class _Counted:
    def __init__(self, done: threading.Semaphore) -> None:
        self._done = done

    def run(self) -> None:
        self._done.release()


class Meanwhile(dict[int, Any]):
    """What a pool knows of its slots; *meanwhile* is called as one is taken out."""

    before: Callable[[], object] | None = None
    after: Callable[[], object] | None = None

    def pop(self, *args: Any) -> Any:
        if self.before is not None:
            self.before()
        found = super().pop(*args)
        if self.after is not None:
            self.after()
        return found


def lost() -> tuple[Slots, Any, Meanwhile]:
    """A slot whose weak reference the garbage collector has cleared, before its finalizer runs."""
    slots = Slots()
    slot = slots.take()
    slots.connected(slot)
    slots._taken = taken = Meanwhile(slots._taken)
    taken[slot.number].slot = ref(Slot(-1))
    assert taken[slot.number].slot() is None
    return slots, slot, taken


def test_a_slot_that_a_finalizer_finds_before_it_is_given_up_stays_taken() -> None:
    slots, slot, taken = lost()
    found: list[bool] = []
    taken.before = lambda: found.append(slots.restore(slot))
    assert slots.give_up_lost() == 0
    assert found == [True]
    assert slots.in_place == 1
    assert slots.give_up(slot)


def test_a_slot_that_was_given_up_before_its_finalizer_looks_stays_given_up() -> None:
    slots, slot, taken = lost()
    found: list[bool] = []
    taken.after = lambda: found.append(slots.restore(slot))
    assert slots.give_up_lost() == 1
    assert found == [False]
    assert slots.in_place == 0
    assert not slots.give_up(slot)


def test_who_sees_that_a_session_is_doomed_sees_as_what_it_counts() -> None:
    class Watched(Session):
        seen: list[str | None]

        def __setattr__(self, name: str, value: object) -> None:
            super().__setattr__(name, value)
            if name == "doomed_by" and value is not None:
                self.seen.append(self.doomed_for)

    session = Watched.__new__(Watched)
    session.seen, session.doomed_by, session.doomed_for = [], None, "error"
    session.doom("25006: the server is read-only", "drained")
    assert session.seen == ["drained"]
