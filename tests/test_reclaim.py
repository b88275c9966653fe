"""Which line of code has a connection: the project's own, and not Django's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django_pooled import reclaim

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest


def made_in(module: str, line: int = 1) -> Callable[[Callable[[], Any]], Any]:
    """Make a function that calls another, as if it stood on that line of such a module."""
    names: dict[str, Any] = {"__name__": module}
    exec("\n" * (line - 1) + "def passes_on(call): return call()", names)
    passes_on: Callable[[Callable[[], Any]], Any] = names["passes_on"]
    return passes_on


def test_the_line_that_is_told_is_that_of_the_code_in_front_of_django() -> None:
    project, django = made_in("shop.models", line=7), made_in("django.db.models.query")
    assert str(django(lambda: project(reclaim.caller))) == "shop.models.passes_on:7"
    assert str(project(lambda: django(reclaim.caller))).startswith(f"{__name__}.<lambda>:")


def test_functions_that_are_made_anew_each_time_are_not_all_remembered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reclaim, "_passed_over", {})
    monkeypatch.setattr(reclaim, "REMEMBERED", 3)
    for line in range(1, 11):
        assert made_in("django.views", line)(reclaim.caller).module == __name__
        assert 1 <= len(reclaim._passed_over) <= 3
