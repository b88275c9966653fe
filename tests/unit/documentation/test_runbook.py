"""docs/runbook.md has a section for each finding, and says the same things in each."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest

from django_pooled.poolstats.findings.finding import Finding, Kind, Level

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "runbook.md").read_text("utf-8")
SECTIONS: dict[str, str] = dict(re.findall(r"^## (.+)\n((?:(?!## ).*\n)+)", PAGE, re.MULTILINE))
CODES = sorted(Finding(Level.FINE, "", kind).code for kind in get_args(Kind))


def anchor(heading: str) -> str:
    """Return what links to a heading end with, on GitHub and on the site."""
    return heading.lower().replace(" ", "-")


def test_each_finding_has_a_section_and_each_section_a_finding() -> None:
    assert [anchor(heading) for heading in SECTIONS] == CODES


@pytest.mark.parametrize("heading", SECTIONS)
def test_a_section_says_what_it_means_how_to_confirm_and_what_to_do_or_not(heading: str) -> None:
    meaning, *rest = re.split(r"^- \*\*(.+?):\*\* ", SECTIONS[heading], flags=re.MULTILINE)
    assert meaning.strip()
    assert rest[::2] == ["Confirm", "Do", "Don't"]
    assert all(text.strip() for text in rest)


@pytest.mark.parametrize("heading", SECTIONS)
def test_a_section_tells_its_alert_or_why_there_is_none(heading: str) -> None:
    name = "DjangoPooled" + heading.title().replace(" ", "")
    text = " ".join(SECTIONS[heading].split())
    assert f"Alert: `{name}`" in text or re.search(r"No alert: \w", text)
