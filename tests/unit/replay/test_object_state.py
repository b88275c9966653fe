from __future__ import annotations

import asyncio
import logging
import sys
from collections import Counter, OrderedDict, defaultdict, deque
from functools import wraps
from importlib import import_module
from itertools import count, cycle, repeat
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple
from unittest.mock import MagicMock

import pytest
from django.utils.datastructures import MultiValueDict
from django.utils.functional import SimpleLazyObject
from django.views import View

from django_pooled.replay import CannotReplay, Inputs, Surroundings, object_state
from django_pooled.replay.closures import _MOST_LOOKED_AT
from django_pooled.replay.object_state import DEPTH, kinds

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path


def nothing(*args: Any, **kwargs: Any) -> None:
    """Stand for a function without surroundings."""


def after(attempt: Callable[[], object], *args: Any, **kwargs: Any) -> None:
    """Call *attempt*, which changes the arguments, and put them back."""
    inputs = Inputs(Surroundings(nothing), args, kwargs)
    inputs.run(attempt)
    inputs.restore()


@pytest.mark.parametrize("name", kinds())
def test_every_class_that_is_known_by_name_exists(name: str) -> None:
    module, _, qualname = name.rpartition(".")
    for package in ("rest_framework", "pydantic"):
        if module.startswith(package):
            pytest.importorskip(package)
    found = getattr(import_module(module), qualname)
    assert (found.__module__, found.__qualname__) in [
        (module, qualname),
        ("collections.abc", "Iterator"),
    ]


def test_lists_dictionaries_and_sets_are_put_back_in_place_and_in_depth() -> None:
    inner: dict[str, Any] = {"a": [1, 2], "b": {3}}
    rows = [inner, (inner["a"],)]

    def change() -> None:
        inner["a"].append(3)
        inner["b"].clear()
        inner["c"] = 1
        rows.clear()

    after(change, rows, more=inner)
    assert rows == [{"a": [1, 2], "b": {3}}, ([1, 2],)]
    assert rows[0] is inner


def test_the_containers_of_the_standard_library_are_put_back() -> None:
    row = Row([1])
    given: list[Any] = [
        deque([1, 2], maxlen=2),
        OrderedDict(b=1, a=2),
        defaultdict(list, a=[1]),
        Counter("aab"),
        row,
        {row: 1},
    ]

    def change() -> None:
        for container in given[:4]:
            container.clear()
        given[2]["b"].append(1)
        row.notes.append(2)

    after(change, given)
    assert given == [
        deque([1, 2]),
        OrderedDict(b=1, a=2),
        {"a": [1]},
        Counter("aab"),
        Row([1]),
        {row: 1},
    ]
    assert list(given[1]) == ["b", "a"]


class Row(NamedTuple):
    notes: list[int]

    def __hash__(self) -> int:
        return 1


def test_what_refers_to_itself_is_put_back() -> None:
    ring: list[Any] = [1]
    ring.append(ring)
    after(ring.clear, ring)
    assert ring[0] == 1
    assert ring[1] is ring


def test_dictionaries_of_django_keep_every_value() -> None:
    values = MultiValueDict({"a": ["1", "2"]})
    after(lambda: values.setlist("a", ["3"]), values)
    assert values.getlist("a") == ["1", "2"]


def test_an_object_that_was_not_made_yet_is_made_again() -> None:
    made: list[list[int]] = []

    def make() -> list[int]:
        made.append([])
        return made[-1]

    lazy = SimpleLazyObject(make)
    after(lambda: lazy.append(7), lazy)
    assert list(lazy) == []
    assert made == [[7], []]


def test_objects_of_other_classes_are_left_alone() -> None:
    counter = SimpleNamespace(hits=1)

    def change() -> None:
        counter.hits += 1

    after(change, counter)
    assert counter.hits == 2


def test_a_view_is_put_back_through_the_method_that_is_bound_to_it() -> None:
    class Greeting(View):
        def dispatch(self, *args: Any, **kwargs: Any) -> Any:
            self.seen = ["changed"]

    view = Greeting()
    view.args = ("as it was",)
    inputs = Inputs(Surroundings(view.dispatch), (), {})
    view.dispatch()
    view.args = ()
    inputs.restore()
    assert view.args == ("as it was",)
    assert not hasattr(view, "seen")


def numbers() -> Iterator[int]:
    yield from range(10)


def used(iterator: Iterator[int]) -> Iterator[int]:
    next(iterator)
    return iterator


@pytest.mark.parametrize(
    "iterator",
    [
        numbers(),
        iter([1, 2, 3]),
        (n for n in range(3)),
        map(abs, [1, 2]),
        zip("ab", "ab", strict=True),
    ],
    ids=lambda iterator: type(iterator).__name__,
)
def test_an_iterator_that_an_attempt_has_begun_ends_the_attempts(iterator: Iterator[Any]) -> None:
    with pytest.raises(CannotReplay, match="used up; pass a list instead"):
        after(lambda: next(iterator), iterator)


@pytest.mark.parametrize("iterator", [numbers(), iter([1, 2, 3]), used(iter([1, 2, 3]))])
def test_an_iterator_that_no_attempt_has_touched_is_no_obstacle(iterator: Iterator[Any]) -> None:
    after(lambda: None, iterator)
    assert next(iterator) in (0, 1, 2)


async def pages() -> AsyncIterator[int]:
    for number in numbers():
        yield number


class Rows:
    """An iterator of a driver."""

    def __aiter__(self) -> Rows:
        return self

    async def __anext__(self) -> int:
        return 1


@pytest.mark.parametrize("make", [pages, Rows])
def test_an_async_iterator_that_an_attempt_has_begun_ends_the_attempts(
    make: Callable[[], AsyncIterator[int]],
) -> None:
    iterator = make()
    with pytest.raises(CannotReplay, match="used up; pass a list instead"):
        after(lambda: asyncio.run(anext(iterator)), iterator)  # type: ignore[arg-type]


@pytest.mark.skipif(sys.version_info < (3, 12), reason="Python does not tell it from another")
def test_an_async_generator_that_no_attempt_has_touched_is_no_obstacle() -> None:
    iterator = pages()
    after(lambda: None, iterator)


@pytest.mark.parametrize("iterator", [count(), cycle([0]), repeat(0)])
def test_an_iterator_without_end_is_no_obstacle(iterator: Iterator[int]) -> None:
    after(lambda: next(iterator), iterator)
    assert next(iterator) in (0, 1)


def test_a_mock_is_no_obstacle() -> None:
    after(lambda: None, MagicMock())


def test_an_open_file_is_read_again_from_where_it_was(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    path.write_bytes(b"one\ntwo\nthree\n")
    with path.open("rb") as file:
        file.readline()
        after(file.read, file)
        assert file.readline() == b"two\n"
        with pytest.raises(CannotReplay, match="closed"):
            after(file.close, file)


def test_a_function_that_changes_a_list_or_variable_around_it_is_told_so_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    found: list[int] = []
    total = 0
    untouched = [1]

    def collect() -> None:
        nonlocal total
        found.append(len(untouched))
        total += 1

    for _ in range(2):
        inputs = Inputs(Surroundings(collect), (), {})
        collect()
        with caplog.at_level(logging.WARNING, "django_pooled.retry"):
            inputs.restore()
    [line] = [record.getMessage() for record in caplog.records]
    assert "collect closes over 'found', 'total' and changes what" in line
    assert found == [1, 1]


def test_what_a_decorator_remembers_is_its_own_business(caplog: pytest.LogCaptureFixture) -> None:
    remembered: dict[str, int] = {}

    def inner() -> None: ...

    @wraps(inner)
    def outer() -> None:
        remembered["calls"] = 1

    inputs = Inputs(Surroundings(outer), (), {})
    outer()
    inputs.restore()
    assert caplog.records == []
    assert remembered == {"calls": 1}


def test_what_a_decorator_wraps_is_looked_at_too() -> None:
    view = View()
    view.kwargs = {"pk": 1}

    def inner() -> None:
        view.kwargs["pk"] = 2

    def outer() -> None:
        inner()

    outer.__wrapped__ = inner  # type: ignore[attr-defined]
    inputs = Inputs(Surroundings(outer), (), {})
    outer()
    inputs.restore()
    assert view.kwargs == {"pk": 1}


def test_a_list_is_put_back_as_far_down_as_objects_are_followed() -> None:
    lists: list[list[Any]] = [[]]
    for _ in range(DEPTH + 1):
        lists.append([lists[-1]])
    lists.reverse()

    def change() -> None:
        for one in lists:
            one.append("more")

    after(change, lists[0])
    assert ["more" in one for one in lists] == [False] * (DEPTH + 1) + [True]


def test_a_variable_that_is_not_assigned_yet_is_no_obstacle(
    caplog: pytest.LogCaptureFixture,
) -> None:
    late: int
    gone = 2

    def function() -> None:
        nonlocal late, gone
        late = 1
        del gone

    inputs = Inputs(Surroundings(function), (), {})
    inputs.run(function)
    inputs.restore()
    assert late == 1
    # One that was there and is no more counts as changed.
    assert "closes over 'gone' and changes" in caplog.text


def test_a_container_too_large_to_look_through_is_watched_as_a_whole(
    caplog: pytest.LogCaptureFixture,
) -> None:
    many: list[dict[str, int]] = [{"votes": 0} for _ in range(_MOST_LOOKED_AT + 1)]

    def function() -> None:
        many.append({"votes": 1})

    inputs = Inputs(Surroundings(function), (), {})
    inputs.run(function)
    inputs.restore()
    assert "closes over 'many' and changes" in caplog.text


def test_classes_that_come_and_go_are_not_remembered_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(object_state, "_MOST_TYPES", 3)
    for number in range(10):
        after(lambda: None, type(f"Made{number}", (), {})())
        assert len(object_state.KINDS) <= 3
