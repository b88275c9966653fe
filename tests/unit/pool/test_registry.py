"""The pools of a process, and those that it has inherited from its parent."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from django_pooled.backend.options import parse
from django_pooled.pool import registry
from django_pooled.pool.pool import Pool

if TYPE_CHECKING:
    from collections.abc import Iterator

PATIENCE = 30.0


class Parents(Pool):
    """A pool that takes its time to be forgotten."""

    abandoning: threading.Event
    may_end: threading.Event

    def abandon(self) -> None:
        self.abandoning.set()
        assert self.may_end.wait(PATIENCE)
        super().abandon()


def make(kind: type[Pool] = Pool) -> Any:
    options = {"min_size": 0, "stats_dir": False}
    return kind(
        "forked", parse("forked", {"OPTIONS": {"pool": options}}), dict, lambda _: None, "nowhere"
    )


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> Iterator[Parents]:
    """A process that has just been forked without a hook, and its parent's pool."""
    monkeypatch.setattr(registry, "_pools", {})
    monkeypatch.setattr(registry, "_inherited", [])
    monkeypatch.setattr(registry, "_forks", {})
    pool: Parents = registry.pool_for("forked", "here", lambda: make(Parents))  # type: ignore[assignment]
    pool.abandoning, pool.may_end = threading.Event(), threading.Event()
    monkeypatch.setattr(registry, "_owner", -1)
    yield pool
    pool.may_end.set()
    registry.close_all()


def test_no_thread_of_a_child_gets_the_parent_s_pool_while_another_forgets_it(
    forked: Parents,
) -> None:
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(registry.pool_for, "forked", "here", make)
        assert forked.abandoning.wait(PATIENCE)
        second = threads.submit(registry.pool_for, "forked", "here", make)
        forked.may_end.set()
        found = {first.result(PATIENCE), second.result(PATIENCE)}
    assert len(found) == 1
    assert forked not in found
    assert registry._inherited == [forked]


def test_a_child_that_closes_its_pools_first_of_all_leaves_the_parent_s_alone(
    forked: Parents, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forked, "close", lambda *args, **kwargs: pytest.fail("it is the parent's"))
    forked.may_end.set()
    registry.close_all()
    registry.close_pools_of("forked")
    assert registry._inherited == [forked]
