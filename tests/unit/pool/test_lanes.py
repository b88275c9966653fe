"""The lane of the running code, and which lane may take a connection."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery  # type: ignore[import-untyped]
from django.core.management import BaseCommand, call_command
from django.views import View

from django_pooled import lane
from django_pooled.backend.options import parse
from django_pooled.pool.admission import Admission
from django_pooled.pool.lane_context import lane_of_caller
from tests.support.threads import at_once

if TYPE_CHECKING:
    from collections.abc import Iterator

    from django_pooled.pool.lanes import Lane


class Command(BaseCommand):
    def handle(self, *args: Any, **options: Any) -> str:
        return lane_of_caller()


def test_code_is_in_the_lane_of_the_innermost_block() -> None:
    with lane("task"):
        with lane("admin"):
            assert lane_of_caller() == "admin"
        assert lane_of_caller() == "task"
    assert lane_of_caller() == "web"


def test_one_block_serves_several_threads_and_tasks_at_once() -> None:
    tasks, after = lane("task"), []
    both_inside = threading.Barrier(2)

    def in_thread() -> None:
        with tasks:
            both_inside.wait(30.0)
        after.append(lane_of_caller())

    at_once(in_thread, 2)

    async def in_task(number: int) -> None:
        with tasks:
            for _ in range(number):
                await asyncio.sleep(0)
            assert lane_of_caller() == "task"
        after.append(lane_of_caller())

    async def main() -> None:
        await asyncio.gather(in_task(2), in_task(4))

    asyncio.run(main())
    with tasks, tasks:
        pass
    after.append(lane_of_caller())
    assert after == ["web"] * 5


def test_a_command_is_a_task(capsys: pytest.CaptureFixture[str]) -> None:
    assert call_command(Command()) == "task"
    with lane("web"):
        assert call_command(Command()) == "web"


def test_a_task_of_celery_is_one() -> None:
    app = Celery(task_always_eager=True)
    assert app.task(name="told")(lane_of_caller).delay().get() == "task"


def test_functions_and_coroutines_are_decorated() -> None:
    @lane("probe")
    def plain() -> str:
        return lane_of_caller()

    @lane("probe")
    async def awaited() -> str:
        await asyncio.sleep(0)
        return lane_of_caller()

    assert plain() == "probe"
    assert asyncio.run(awaited()) == "probe"
    assert lane_of_caller() == "web"


def test_a_generator_is_refused() -> None:
    def rows() -> Iterator[int]:
        yield 1

    with pytest.raises(TypeError, match="use it as a block in the generator"):
        lane("task")(rows)


def test_a_class_is_refused() -> None:
    class Export(View):
        pass

    with pytest.raises(TypeError, match=r"lane\(\) around the class .*Export; decorate a function"):
        lane("task")(Export)
    lane("task")(Export.as_view())


def test_another_name_is_refused() -> None:
    with pytest.raises(ValueError, match="expected one of probe, admin, web, task"):
        lane("tasks")


def admitted(held: dict[str, int], lanes: dict[str, dict[str, int]]) -> list[str]:
    """The lanes that may take one more connection, of five."""
    options = parse("default", {"OPTIONS": {"pool": {"max_size": 5, "lanes": lanes}}})
    admission = Admission(options)
    by_name: dict[str, Lane] = {}
    for name in ("probe", "admin", "web", "task"):
        with lane(name):
            by_name[name] = admission.lane_of_caller()
    counts = Counter({by_name[name]: number for name, number in held.items()})
    return [name for name, one in by_name.items() if admission.admits(one, counts, 5)]


def test_what_is_reserved_and_not_in_use_is_left_to_its_lane() -> None:
    reserved = {"admin": {"reserved": 2}}
    assert admitted({"web": 3}, reserved) == ["admin"]
    assert admitted({"web": 3, "admin": 1}, reserved) == ["admin"]
    assert admitted({"web": 3, "admin": 2}, reserved) == []
    assert admitted({"web": 2, "admin": 2}, reserved) == ["probe", "admin", "web", "task"]
    assert admitted({"admin": 4}, reserved) == ["probe", "admin", "web", "task"]


def test_a_lane_has_no_more_than_its_maximum() -> None:
    limits = {"task": {"max": 2}}
    assert admitted({"task": 1}, limits) == ["probe", "admin", "web", "task"]
    assert admitted({"task": 2}, limits) == ["probe", "admin", "web"]


def test_the_reservations_of_several_lanes_are_kept_side_by_side() -> None:
    limits = {"probe": {"reserved": 1}, "task": {"reserved": 2, "max": 2}}
    assert admitted({"web": 2}, limits) == ["probe", "task"]
    assert admitted({"web": 1, "task": 1}, limits) == ["probe", "admin", "web", "task"]
    assert admitted({"web": 2, "task": 2}, limits) == ["probe"]
