"""The order in which workers get the tests."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from tests.support.distribution import SECONDS, spread

if TYPE_CHECKING:
    import pytest


class Test:
    """One test, as far as its place in the order depends on it."""

    __test__ = False

    def __init__(self, name: str) -> None:
        self.path = Path("/tests", name)

    def get_closest_marker(self, name: str) -> str | None:
        return name if self.path.parts[2] == name else None


def several(*files: tuple[str, int]) -> list[pytest.Item]:
    return [cast("Any", Test(name)) for name, count in files for _ in range(count)]


FEW = several(
    ("integration/a.py", 40),
    ("integration/example/test_command.py", 20),
    ("proof/test_proof.py", 20),
    ("unit/b.py", 60),
    ("unit/c.py", 60),
)


def test_each_test_is_in_it_once() -> None:
    for workers in (1, 2, 3, 8):
        ordered = spread(FEW, workers)
        assert sorted(map(id, ordered)) == sorted(map(id, FEW))


def test_each_worker_begins_with_long_files_of_its_own_and_ends_with_unit_tests() -> None:
    ordered = spread(FEW, 2)
    parts = [ordered[:100], ordered[100:]]
    assert [part[0].path.name for part in parts] == ["test_proof.py", "test_command.py"]
    assert {part[-1].path.parts[2] for part in parts} == {"unit"}
    names = [{test.path.name for test in part} - {"b.py", "c.py"} for part in parts]
    assert names == [{"test_proof.py"}, {"test_command.py", "a.py"}]


def test_the_longest_files_are_there() -> None:
    files = [path.as_posix() for path in Path(__file__).parents[1].rglob("test_*.py")]
    assert [end for end in SECONDS if not any(name.endswith(end) for name in files)] == []
