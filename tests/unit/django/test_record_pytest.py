"""What is recorded of a run under pytest: a loss would look as if both engines did the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

SUITE = """
import dj_database_url
import pytest

@pytest.fixture
def broken():
    raise ValueError("before")

@pytest.fixture
def breaking():
    yield
    raise ValueError("after")

def test_fine():
    pass

def test_engine():
    database = dj_database_url.parse("tested://host/name")
    assert database["ENGINE"] == "django_pooled"
    assert database["OPTIONS"] == {"pool": True}

def test_wrong():
    assert False, "wrong"

def test_wrong_twice(breaking):
    assert False, "wrong"

def test_left_out():
    pytest.skip("no reason")

@pytest.mark.skip
def test_marked():
    assert False

@pytest.mark.xfail
def test_known():
    assert False

@pytest.mark.xfail
def test_mended():
    pass

def test_before(broken):
    pass

def test_after(breaking):
    pass
"""


def test_the_plugin_records_the_worst_that_became_of_each_test(tmp_path: Path) -> None:
    (tmp_path / "test_suite.py").write_text(SUITE)
    record = tmp_path / "record.json"
    subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "record_pytest", "-p", "no:django", tmp_path],
        cwd=tmp_path,
        env={
            **os.environ,
            "PYTHONPATH": str(Path(__file__).resolve().parents[2] / "other_suites" / "inside"),
            "ENGINE": "django_pooled",
            "ENGINE_OPTIONS": '{"pool": true}',
            "DJANGO_SUITE_RECORD": str(record),
        },
        capture_output=True,
        check=False,
    )
    found = json.loads(record.read_text())
    assert {name.rpartition("test_")[2]: outcome for name, outcome in found["tests"].items()} == {
        "fine": "passed",
        "engine": "passed",
        "wrong": "failed",
        "wrong_twice": "errored",
        "left_out": "skipped",
        "marked": "skipped",
        "known": "expected failure",
        "mended": "unexpected success",
        "before": "errored",
        "after": "errored",
    }
    assert "AssertionError: wrong" in found["details"]["test_suite.py::test_wrong"]
