"""What became of each test in one run of a test suite, and how that is kept."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["SEVERITY", "Outcomes", "place", "worse"]

#: From the best to the worst; of a test with subtests the worst counts.
SEVERITY = ("passed", "expected failure", "skipped", "unexpected success", "failed", "errored")


def worse(one: str, other: str) -> str:
    """Return the worse of two outcomes."""
    return max(one, other, key=SEVERITY.index)


@dataclass(frozen=True)
class Outcomes:
    """One run.

    Args:
        tests: outcome by the test's dotted name; one of ``SEVERITY``.
        taken_with: what it was taken with: versions, engine, user, options.
        seconds: how long the run took.
        details: the traceback or the reason, of tests that did not pass.
    """

    tests: Mapping[str, str]
    taken_with: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    details: Mapping[str, str] = field(default_factory=dict)

    def only(self, labels: list[str]) -> Outcomes:
        """Return what belongs to these modules, classes or tests; all, if there are none."""
        if not labels:
            return self
        chosen = tuple(f"{label}." for label in labels)
        tests = {
            name: outcome
            for name, outcome in self.tests.items()
            if f"{place(name)}.".startswith(chosen)
        }
        return Outcomes(tests, self.taken_with, self.seconds, self.details)

    def save(self, path: Path) -> None:
        """Write it as text in which a line holds the tests of one class; details are left out."""
        classes: defaultdict[str, defaultdict[str, list[str]]] = defaultdict(
            lambda: defaultdict(list)
        )
        for name in sorted(self.tests):
            owner, _, test = name.rpartition(".")
            classes[owner][self.tests[name]].append(test)
        lines = ",\n".join(
            f"  {json.dumps(owner)}: "
            + json.dumps({outcome: " ".join(names) for outcome, names in found.items()})
            for owner, found in classes.items()
        )
        head = json.dumps(
            {"taken_with": dict(self.taken_with), "seconds": round(self.seconds)}, indent=1
        )
        path.write_text(f'{head[:-2]},\n "tests": {{\n{lines}\n }}\n}}\n')

    @classmethod
    def load(cls, path: Path) -> Outcomes:
        """Read what ``save`` has written."""
        kept: dict[str, Any] = json.loads(path.read_text())
        tests = {
            f"{owner}.{test}": outcome
            for owner, found in kept["tests"].items()
            for outcome, names in found.items()
            for test in names.split(" ")
        }
        return cls(tests, kept["taken_with"], kept["seconds"])


def place(name: str) -> str:
    """Return a test's dotted name, or that of the class in ``setUpClass (module.Class)``."""
    return name.partition(" (")[2].rstrip(")") or name
