"""Patterns are compiled when they are first used, and each of the package's can be."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import django_pooled
from django_pooled import lazy_pattern as module
from django_pooled.lazy_pattern import lazy_pattern

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pytest

PACKAGE = Path(django_pooled.__file__).parent


def test_a_pattern_is_compiled_at_its_first_use(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []

    def compile_it(*given: object) -> re.Pattern[str]:
        compiled.append(given)
        return real(*given)  # type: ignore[call-overload,no-any-return]

    real = re.compile
    monkeypatch.setattr(re, "compile", compile_it)
    pattern = lazy_pattern("A+", re.IGNORECASE)
    assert compiled == []
    found = [pattern.match(text) for text in ("aab", "b", "A")]
    assert [match and match[0] for match in found] == ["aa", None, "A"]
    assert compiled == [("A+", re.IGNORECASE)]


def test_each_pattern_of_the_package_compiles() -> None:
    patterns = list(_patterns())
    assert len(patterns) > 50
    for pattern in patterns:
        assert pattern.pattern


def _patterns() -> Iterator[re.Pattern[str]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        if "import lazy_pattern\n" in path.read_text(encoding="utf-8"):
            name = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
            yield from _within(vars(import_module(name)).values())


def _within(values: object) -> Iterator[re.Pattern[str]]:
    for value in values:  # type: ignore[attr-defined]
        if isinstance(value, module._LazyPattern):
            yield value  # type: ignore[misc]
        elif isinstance(value, tuple):
            yield from _within(value)
