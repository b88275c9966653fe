"""What README.md shows is what works, and all its links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from django_pooled.backend.options import parse

ROOT = Path(__file__).resolve().parents[3]
README = (ROOT / "README.md").read_text("utf-8")
(SETTINGS,) = re.findall(r"^```python\n(DATABASES = .*?)^```", README, re.MULTILINE | re.DOTALL)


def test_the_settings_are_accepted() -> None:
    shown: dict[str, Any] = {}
    exec(SETTINGS, shown)
    assert parse("default", shown["DATABASES"]["default"]).max_size == 10
    assert shown["INSTALLED_APPS"][-1] == "django_pooled"


def test_the_links_lead_to_files() -> None:
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", README)
    assert len(links) > 10
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_it_names_the_versions_that_setup_cfg_names() -> None:
    setup = (ROOT / "setup.cfg").read_text("utf-8")
    (line,) = [line for line in README.splitlines() if line.startswith("Django 5")]
    for name, named in zip(("Django", "Python"), line.split(" · ")[:2], strict=True):
        classified = re.findall(rf":: {name} :: (\d\.\d+)$", setup, re.MULTILINE)
        shown = re.findall(r"\d\.\d+", named)
        assert (shown[0], shown[-1]) == (classified[0], classified[-1])
