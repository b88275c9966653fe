"""Which line of code has a connection: the project's own, and not Django's."""

from __future__ import annotations

import _thread
import threading
from typing import TYPE_CHECKING, Any

from django_pooled import own_code

if TYPE_CHECKING:
    from collections.abc import Callable


def made_in(module: str, line: int = 1) -> Callable[[Callable[[], Any]], Any]:
    """Make a function that calls another, as if it stood on that line of such a module."""
    names: dict[str, Any] = {"__name__": module}
    exec("\n" * (line - 1) + "def passes_on(call): return call()", names)
    passes_on: Callable[[Callable[[], Any]], Any] = names["passes_on"]
    return passes_on


def test_the_line_that_is_told_is_that_of_the_code_in_front_of_django() -> None:
    project, django = made_in("shop.models", line=7), made_in("django.db.models.query")
    assert str(django(lambda: project(own_code.caller))) == "shop.models.passes_on:7"
    assert str(project(lambda: django(own_code.caller))).startswith(f"{__name__}.<lambda>:")


def test_a_function_of_django_that_says_it_is_the_projects_is_passed_over() -> None:
    django = made_in("contextlib")
    # As functools.wraps() leaves what atomic() makes of a view.
    django.__module__ = "shop.views"
    assert str(django(own_code.caller)).startswith(f"{__name__}.test_a_function_of_django")


def test_a_function_without_a_module_is_passed_over_by_its_frame() -> None:
    django = made_in("django.db.models.query")
    django.__module__ = None  # type: ignore[assignment]
    assert str(django(own_code.caller)).startswith(f"{__name__}.test_a_function_without")


def test_without_code_of_the_project_the_line_is_the_outermost() -> None:
    names: dict[str, Any] = {"__name__": "django.tasks", "told": [], "caller": own_code.caller}
    exec("def run(ended):\n told.append(caller())\n ended.set()", names)
    ended = threading.Event()
    _thread.start_new_thread(names["run"], (ended,))
    assert ended.wait(10.0)
    assert str(names["told"][0]) == "django.tasks.run:2"


def test_the_line_of_a_function_of_many_is_the_one_that_ran() -> None:
    def calls_it() -> own_code.Line:
        before = own_code.caller().number
        now = own_code.caller()
        assert now.number == before + 1
        return now

    assert calls_it().number == calls_it.__code__.co_firstlineno + 2


def test_code_without_lines_is_told_by_its_first() -> None:
    code = (lambda: None).__code__
    assert own_code.Line(code, __name__, 10_000).number == code.co_firstlineno
