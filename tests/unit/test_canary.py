"""The canary knows each private name that is used, and tells what has become of it."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from tests.canary.names import Findings, Name, described, missing_imports
from tests.canary.record import GIS, Record, compare, read, write
from tests.support.next_release import VERSION, environment_with, next_release

if TYPE_CHECKING:
    from pathlib import Path

LOOK = """
import json, django
from django.conf import settings
settings.configure()
django.setup()
from tests.canary.names import look
found = look()
assert not found.errors, found.errors
print(json.dumps({package: sorted(names) for package, names in found.names.items()}))
"""


def test_each_name_that_is_asked_for_is_recorded_and_no_other() -> None:
    done = subprocess.run([sys.executable, "-c", LOOK], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    found["django"] = sorted({*found["django"], *GIS})
    recorded = {package: sorted(known) for package, known in read().names.items()}
    assert found == recorded, "to be recorded by: python -m tests.canary --add"


def test_all_that_is_imported_of_the_packages_is_there() -> None:
    assert missing_imports() == []


def test_an_import_of_what_is_gone_is_told(tmp_path: Path) -> None:
    (tmp_path / "uses.py").write_text(
        "from tenacity import Retrying, wait_gone\n"
        "from django.db import models, utils, no_such\n"
        "from psycopg_pool.lost import Pool\n"
    )
    assert [line.partition(": ")[2] for line in missing_imports(tmp_path)] == [
        "django.db.no_such is gone",
        "psycopg_pool.lost is gone",
        "tenacity.wait_gone is gone",
    ]


def told_of(packages: Path) -> list[str]:
    """Run the canary on packages that have changed; return its lines."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.canary"],
        capture_output=True,
        text=True,
        check=False,
        env=environment_with(packages),
    )
    assert done.returncode == 1, done.stderr
    return [line.strip() for line in done.stdout.splitlines()]


def test_it_tells_in_one_line_for_each_name_what_moved(tmp_path: Path) -> None:
    packages = next_release(
        tmp_path,
        (r"\b_shrink_pool\b", "_make_smaller"),
        (r"(def schedule_task\(self, task: MaintenanceTask), delay: float", r"\1, when: float"),
        (r"(def _check_open_getconn\(self\) -> None:\n)", r"\1        self._looks = 1\n"),
        (r"self\._waiting = deque\[WaitingClient\[CT\]\]\(\)", "self._waiting = list()"),
        (r"(attempt: AttemptWithBackoff \| None, growing: bool = False)", r"\1, why: str = ''"),
    )
    lines = [line for line in told_of(packages) if "psycopg-pool" in line]
    assert lines[0].startswith(f"psycopg-pool {VERSION}, recorded: 3.3.")
    assert [line.removeprefix("psycopg-pool: ") for line in sorted(lines[1:])] == [
        "ConnectionPool._add_connection takes (self, attempt, growing=…, why=…), "
        "took (self, attempt, growing=…) (to decide when a connection is opened)",
        "ConnectionPool._check_open_getconn has changed inside (to take an idle connection)",
        "ConnectionPool._shrink_pool is gone (to take a connection back)",
        "ConnectionPool._waiting is a list, was a deque (to take an idle connection)",
        "ConnectionPool.schedule_task takes (self, task, when), took (self, task, delay) "
        "(to give tasks to its threads)",
        "psycopg_pool.pool.ConnectionPool has changed inside (to open a pool)",
    ]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            (r"\bMaintenanceTask\b", "PoolTask"),
            "psycopg_pool.pool.MaintenanceTask is gone (to give tasks to its threads)",
        ),
        ((r"(?m)^from \.pool import", "from .inside import"), "psycopg_pool.pool is gone"),
    ],
    ids=["class", "module"],
)
def test_it_names_a_class_or_a_module_that_is_gone(
    tmp_path: Path, change: tuple[str, str], told: str
) -> None:
    packages = next_release(tmp_path, change)
    if told.startswith("psycopg_pool.pool is"):
        folder = packages / "psycopg_pool"
        (folder / "pool.py").rename(folder / "inside.py")
    lines = told_of(packages)
    assert any(line.startswith(f"psycopg-pool {VERSION}, recorded: ") for line in lines)
    assert f"psycopg-pool: {told}" in lines


class Pool:
    """A class."""

    limit = 3

    def take(self, timeout: float, *, quickly: bool = False) -> int:
        """Take one."""
        return int(timeout)  # in seconds


class Reworded:
    def take(self, timeout: Any, *, quickly: Any = False) -> Any:
        return int(timeout)


class Changed:
    def take(self, timeout: Any, *, quickly: Any = False) -> Any:
        return int(timeout) + 1


def test_comments_docstrings_and_annotations_do_not_count() -> None:
    before = described(Pool, "take")
    assert (before.kind, before.takes) == ("function", "self, timeout, *, quickly=…")
    assert described(Reworded, "take") == before
    assert described(Changed, "take")[:2] == before[:2]
    assert described(Changed, "take").code != before.code


def test_what_is_no_function_is_known_by_its_type() -> None:
    assert described(Pool, "limit") == Name("int")
    assert described(Pool, "no_such") == Name("gone")
    assert described(Pool.take, "int") == Name("used")
    assert described(Pool.take, "float") == Name("gone")


@pytest.mark.parametrize(
    ("now", "broken", "changed"),
    [
        (Name("function", "self", "1"), "", ""),
        (Name("function", "self", "2"), "", "has changed inside"),
        (Name("function", "self, how", "1"), "takes (self, how), took (self)", ""),
        (Name("property"), "is a property, was a function", ""),
        (Name("gone"), "is gone", ""),
    ],
)
def test_what_moved_is_told_by_what_it_breaks(now: Name, broken: str, changed: str) -> None:
    before = {"pool": {"Pool.take": Name("function", "self", "1")}}
    found = Findings({"pool": {"Pool.take": now}}, {"Pool.take": "take one"}, [])
    moved = compare(before, found)
    told = [f"pool: Pool.take {words} (to take one)" for words in (broken, changed) if words]
    assert [*moved.broken, *moved.changed] == told
    assert bool(moved.broken) == bool(broken)


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    names = {"pool": {"Pool.take": Name("function", "self", "1"), "Pool.limit": Name("int")}}
    record = Record(names, {"pool": "1.2"}, "3.13.0")
    write(record, tmp_path / "record.json")
    assert read(tmp_path / "record.json") == record
    # A line for each name.
    assert '   "Pool.take": ["function", "self", "1"]' in (
        (tmp_path / "record.json").read_text().splitlines()
    )


def test_a_name_that_is_added_leaves_the_others_as_they_were_recorded() -> None:
    old, new, gis = Name("function", "self", "1"), Name("function", "self", "2"), Name("dict")
    names = {"pool": {"Pool.take": old, "Pool.lost": old}, "django": {next(iter(GIS)): gis}}
    record = Record(names, {"pool": "1.2"}, "3.13.0")
    found = {"pool": {"Pool.take": new, "Pool.give": new}, "django": {"Q.run": new}}
    assert record.with_names(found).names == {
        "pool": {"Pool.take": old, "Pool.give": new},
        "django": {"Q.run": new, next(iter(GIS)): gis},
    }
