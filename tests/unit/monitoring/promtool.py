"""Prometheus's promtool, which checks rules and tests them on series."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from .exposed import samples

if TYPE_CHECKING:
    from pathlib import Path

    from django_pooled.poolstats.overview import Overview

    from .incidents import Incident

__all__ = [
    "AFTER",
    "BEFORE",
    "DURING",
    "EVERY",
    "check_rules",
    "needs_promtool",
    "run_tests",
    "series",
]

EVERY = 15
"""Seconds between two scrapes."""
BEFORE, DURING, AFTER = 16, 32, 60
"""Scrapes."""

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is missing: apt-get install prometheus"
)


def series(incident: Incident) -> list[dict[str, str]]:
    """Return what Prometheus has: calm, then the incident, then calm with the counts of it."""
    before, amid = _by_name(incident.before), _by_name(incident.amid)
    found = []
    for name in before | amid:
        first, last = before.get(name), amid.get(name)
        if re.match(r"\w+(_total|_bucket|_count|_sum)\{", name):
            start = first or 0.0
            end = start if last is None else last
            during = [start + (end - start) * step / DURING for step in range(1, DURING + 1)]
            values: list[float | None] = [first] * BEFORE + during + [end] * AFTER
        else:
            values = [first] * BEFORE + [last] * DURING + [first] * AFTER
        written = " ".join("_" if value is None else f"{value:g}" for value in values)
        found.append({"series": name, "values": written})
    return found


def _by_name(look: Overview) -> dict[str, float]:
    return {
        f"{name}{{{','.join(f'{label}={json.dumps(it)}' for label, it in labels.items())}}}": value
        for name, labels, value in samples(look)
    }


def run_tests(folder: Path, group: dict[str, Any], *rules: Path) -> None:
    """Have promtool run one group of tests.

    Args:
        folder: For its file.
        group: The series, and what is to be tested on them.
        rules: The files with the rules.
    """
    content = {
        "rule_files": [str(file) for file in rules],
        "evaluation_interval": f"{EVERY}s",
        "tests": [{"interval": f"{EVERY}s", **group}],
    }
    file = folder / "test.yml"
    file.write_text(json.dumps(content))  # JSON is YAML.
    _run("test", "rules", str(file))


def check_rules(rules: Path) -> None:
    """Have promtool check a file of rules."""
    _run("check", "rules", "--lint=all", "--lint-fatal", str(rules))


def _run(*arguments: str) -> None:
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
