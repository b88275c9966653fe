"""docs/checks.md has a row for each check, and no other."""

from __future__ import annotations

import re
from pathlib import Path

import django_pooled

PACKAGE = Path(django_pooled.__file__).parent
PAGE = PACKAGE.parent / "docs" / "checks.md"


def test_each_id_in_the_code_has_a_row_and_each_row_an_id_in_the_code() -> None:
    code = "".join(path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py"))
    made = re.findall(r'id="(django_pooled\.[EWI]\d{3})"', code)
    rows = re.findall(r"^\| `(.+?)` \| .+ \| .+ \|$", PAGE.read_text("utf-8"), re.MULTILINE)
    assert len(made) == len(set(made))
    assert sorted(rows) == sorted(made)
    assert len(rows) > 20
