"""The log lines that docs/faults.md shows are lines that the package writes."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import django_pooled

PACKAGE = Path(django_pooled.__file__).parent
PAGE = (PACKAGE.parent / "docs" / "faults.md").read_text("utf-8")
SHOWN = sorted(set(re.findall(r"`((?:pool|database) 'default': [^`]+)`", PAGE)))


def formats() -> list[str]:
    """Return the formats of log lines that begin with a pool or a database and have words."""
    return [
        node.value
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and re.match(r"(pool|database) %r: .*[a-z]{3}", node.value)
    ]


def pattern(log_format: str) -> str:
    """Return what matches the lines of a format."""
    return ".+".join(map(re.escape, re.split(r"%[.\d]*[rsdf]", log_format)))


@pytest.mark.parametrize("line", SHOWN)
def test_a_log_line_of_the_page_is_written(line: str) -> None:
    assert [it for it in formats() if re.fullmatch(pattern(it), line)]


def test_the_page_shows_log_lines() -> None:
    assert len(SHOWN) > 5
