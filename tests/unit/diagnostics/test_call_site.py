"""Which line of code has a connection: the project's own, and not Django's."""

from __future__ import annotations

import _thread
import functools
import threading
from functools import partial
from typing import TYPE_CHECKING, Any

from django_pooled.diagnostics import call_site

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest


def made_in(
    module: str, line: int = 1, file: str = "<string>"
) -> Callable[[Callable[[], Any]], Any]:
    """Make a function that calls another, as if it stood on that line of such a module."""
    names: dict[str, Any] = {"__name__": module}
    source = "\n" * (line - 1) + "def passes_on(call): return call()"
    exec(compile(source, file, "exec"), names)
    passes_on: Callable[[Callable[[], Any]], Any] = names["passes_on"]
    return passes_on


def test_the_line_that_is_told_is_that_of_the_code_in_front_of_django() -> None:
    project, django = made_in("shop.models", line=7), made_in("django.db.models.query")
    assert str(django(lambda: project(call_site.caller))) == "shop.models.passes_on:7"
    assert str(project(lambda: django(call_site.caller))).startswith(f"{__name__}.<lambda>:")


def test_a_function_of_django_that_says_it_is_the_projects_is_passed_over() -> None:
    django = made_in("contextlib")
    # As functools.wraps() leaves what atomic() makes of a view.
    django.__module__ = "shop.views"
    assert str(django(call_site.caller)).startswith(f"{__name__}.test_a_function_of_django")


def test_a_function_without_a_module_is_passed_over_by_its_frame() -> None:
    django = made_in("django.db.models.query")
    django.__module__ = None  # type: ignore[assignment]
    assert str(django(call_site.caller)).startswith(f"{__name__}.test_a_function_without")


def test_without_code_of_the_project_the_line_is_the_outermost() -> None:
    names: dict[str, Any] = {"__name__": "django.tasks", "told": [], "caller": call_site.caller}
    exec("def run(ended):\n told.append(caller())\n ended.set()", names)
    ended = threading.Event()
    _thread.start_new_thread(names["run"], (ended,))
    assert ended.wait(10.0)
    assert str(names["told"][0]) == "django.tasks.run:2"


def test_the_line_of_a_function_of_many_is_the_one_that_ran() -> None:
    def calls_it() -> call_site.Line:
        before = call_site.caller().number
        now = call_site.caller()
        assert now.number == before + 1
        return now

    assert calls_it().number == calls_it.__code__.co_firstlineno + 2


def test_code_without_lines_is_told_by_its_first() -> None:
    code = (lambda: None).__code__
    assert call_site.Line(code, __name__, 10_000).number == code.co_firstlineno


def installed(package: str) -> Callable[[Callable[[], Any]], Any]:
    """Make a function of a package in a folder of installed ones."""
    return made_in(
        f"{package}.patches", file=f"/venv/lib/python3/site-packages/{package}/patches.py"
    )


def test_what_watches_the_project_is_not_taken_for_it() -> None:
    project = made_in("shop.models", line=7, file="/app/shop/models.py")
    for watcher in ("sentry_sdk", "wrapt", "ddtrace", "a_watcher_that_nobody_knows"):
        line = project(partial(installed(watcher), call_site.caller))
        assert str(line) == "shop.models.passes_on:7"


def test_pythons_own_code_is_not_taken_for_the_projects() -> None:
    project = made_in("shop.models", line=7, file="/app/shop/models.py")
    standard = made_in("functools", file=functools.__file__)
    assert str(project(partial(standard, call_site.caller))) == "shop.models.passes_on:7"


def test_a_project_that_is_installed_is_known_by_its_settings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DJANGO_SETTINGS_MODULE", "shop.settings")
    call_site._is_library.cache_clear()
    call_site._files.clear()
    line = installed("shop")(partial(installed("sentry_sdk"), call_site.caller))
    assert str(line) == "shop.patches.passes_on:1"
    call_site._is_library.cache_clear()
    call_site._files.clear()


def test_where_all_is_installed_a_known_watcher_is_passed_over() -> None:
    told: list[call_site.Line] = []
    ended = threading.Event()
    # In a thread of its own, since this file would be taken for the project.
    names: dict[str, Any] = {"__name__": "wrapt.wrappers", "ask": call_site.caller, "told": told}
    file = "/venv/lib/python3/site-packages/wrapt/wrappers.py"
    exec(compile("def run(): told.append(ask())", file, "exec"), names)
    outer: dict[str, Any] = {"__name__": "a_shop.views", "run": names["run"], "ended": ended}
    file = "/venv/lib/python3/site-packages/a_shop/views.py"
    exec(compile("def view():\n run()\n ended.set()", file, "exec"), outer)
    _thread.start_new_thread(outer["view"], ())
    assert ended.wait(10)
    assert str(told[0]) == "a_shop.views.view:2"


def test_the_lines_that_led_here_are_the_projects_the_outermost_first() -> None:
    outer = made_in("shop.views", file="/app/shop/views.py")
    inner = made_in("shop.models", file="/app/shop/models.py")
    lines = outer(partial(installed("wrapt"), partial(inner, call_site.callers)))
    assert [str(line) for line in lines[-2:]] == [
        "shop.views.passes_on:1", "shop.models.passes_on:1"
    ]  # fmt: skip
    assert call_site.quoted(lines[-1]) == '  File "/app/shop/models.py", line 1, in passes_on\n'
