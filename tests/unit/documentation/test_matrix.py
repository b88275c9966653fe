"""Classifiers, tox, the workflow and the docs name the same Pythons and Djangos."""

from __future__ import annotations

import configparser
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def text(path: str) -> str:
    return (ROOT / path).read_text("utf-8")


def classified(prefix: str) -> list[str]:
    setup = configparser.RawConfigParser()
    setup.read_string(text("setup.cfg"))
    found = re.findall(rf"^{prefix} :: (\d+\.\d+)$", setup["metadata"]["classifiers"], re.M)
    assert found
    return found


PYTHONS = classified("Programming Language :: Python")
ENVIRONMENTS = set(re.findall(r"^    py3(\d+)-django\{?([\d,]+)", text("tox.ini"), re.M))


def test_tox_has_an_environment_for_each_python() -> None:
    assert [f"3.{number}" for number, _ in sorted(ENVIRONMENTS)] == PYTHONS


def test_tox_has_an_environment_for_each_django() -> None:
    series = {one for _, found in ENVIRONMENTS for one in found.split(",")}
    assert sorted(f"{one[0]}.{one[1:]}" for one in series) == classified("Framework :: Django")


def test_the_workflow_runs_each_python() -> None:
    [found] = re.findall(r"^        python: \[(.+)\]$", text(".github/workflows/ci.yml"), re.M)
    assert re.findall(r'"(.+?)"', found) == PYTHONS


def test_the_workflow_runs_what_tox_lists() -> None:
    """The newest Django of a Python by its first job, the others by the second."""
    jobs = re.findall(r"env: (py\d+-django\d+), python: ", text(".github/workflows/ci.yml"))
    others = [
        f"py3{number}-django{one}"
        for number, found in sorted(ENVIRONMENTS)
        for one in found.split(",")[:-1]
    ]
    assert jobs == others


def test_the_page_names_the_oldest_and_the_newest() -> None:
    [found] = re.findall(r"^Python (3\.\d+) to (3\.\d+) · ", text("docs/choosing.md"), re.M)
    assert found == (PYTHONS[0], PYTHONS[-1])
