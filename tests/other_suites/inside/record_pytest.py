"""A pytest plugin that writes down what became of each test, in the format of Outcomes.

It runs in an interpreter in which the package ``tests`` is not ours, so it imports nothing of this
project. It also has dj-database-url know the engine under test.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import dj_database_url

if TYPE_CHECKING:
    import pytest

#: From the best to the worst; a test reports its setup, its call, its subtests and its teardown.
SEVERITY = ("passed", "expected failure", "skipped", "unexpected success", "failed", "errored")

tests: dict[str, str] = {}
details: dict[str, str] = {}


def add_options(database: dj_database_url.DBConfig) -> None:
    if options := json.loads(os.environ["ENGINE_OPTIONS"]):
        database["OPTIONS"] = options


dj_database_url.register("tested", os.environ["ENGINE"])(add_options)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    outcome: str = report.outcome
    if hasattr(report, "wasxfail"):
        outcome = "expected failure" if report.skipped else "unexpected success"
    elif report.when != "call":
        outcome = "errored" if report.failed else outcome
    name = report.nodeid
    tests[name] = max(tests.get(name, outcome), outcome, key=SEVERITY.index)
    if outcome not in SEVERITY[:2]:
        details[name] = report.longreprtext


def pytest_sessionfinish() -> None:
    record = {"tests": tests, "details": details}
    Path(os.environ["DJANGO_SUITE_RECORD"]).write_text(json.dumps(record))
