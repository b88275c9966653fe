"""Two runs of one test suite held against each other, test by test."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from .outcomes import Outcomes

__all__ = ["Comparison", "Reason", "compare"]

_PASSED = {"passed", "expected failure"}
_FAILED = {"failed", "errored", "unexpected success"}


@dataclass(frozen=True)
class Reason:
    """Why a test may fail or be skipped on this backend alone."""

    text: str
    link: str


@dataclass(frozen=True)
class Comparison:
    """What differs; names of tests, sorted."""

    here: Outcomes
    native: Outcomes
    failed_on_both: list[str]
    failed_only_here: list[str]
    skipped_only_here: list[str]
    missing_here: list[str]
    passed_only_here: list[str]
    excused: Mapping[str, Reason] = field(default_factory=dict)
    passed_again: Collection[str] = ()
    """Of those that failed only here, the ones that passed when they were run once more."""

    @property
    def unexplained(self) -> list[str]:
        """What fails, is skipped or is missing only here, without a reason on the list."""
        differing = self.failed_only_here + self.skipped_only_here + self.missing_here
        return [
            name for name in differing if name not in self.excused and name not in self.passed_again
        ]

    def with_another_run(self, again: Outcomes) -> Comparison:
        """Return the comparison after what failed only here has been run once more, by itself.

        Some of Django's tests allow a second for what takes longer on a machine with other work.
        """
        passed = {name for name, outcome in again.tests.items() if outcome in _PASSED}
        return replace(self, passed_again=passed & set(self.failed_only_here))

    def table(self) -> str:
        """Return counts for both, and what differs."""
        columns = (
            ("run", len(self.native.tests), len(self.here.tests)),
            ("passed", _count(self.native, _PASSED), _count(self.here, _PASSED)),
            ("skipped", _count(self.native, {"skipped"}), _count(self.here, {"skipped"})),
            ("failed", _count(self.native, _FAILED), _count(self.here, _FAILED)),
            ("failed on both", len(self.failed_on_both), len(self.failed_on_both)),
            ("failed only here", "", len(self.failed_only_here)),
            ("skipped only here", "", len(self.skipped_only_here)),
            ("missing here", "", len(self.missing_here)),
            ("passed only here", "", len(self.passed_only_here)),
            ("seconds", round(self.native.seconds), round(self.here.seconds)),
        )
        names = [_engine(self.native), _engine(self.here)]
        width = max(map(len, names))
        lines = [f"{'':18}  {names[0]:>{width}}  {names[1]:>{width}}"]
        lines += [f"{label:18}  {one:>{width}}  {other:>{width}}" for label, one, other in columns]
        return "\n".join(lines)

    def report(self) -> str:
        """Return the table and the name of every test that differs, with what is known of it."""
        parts = [self.table()]
        for title, names in (
            ("failed only here", self.failed_only_here),
            ("skipped only here", self.skipped_only_here),
            ("missing here", self.missing_here),
            ("passed only here", self.passed_only_here),
        ):
            if names:
                parts.append("\n".join([f"{title}:", *map(self._line, names)]))
        parts += [
            f"--- {name}\n{self.here.details[name].rstrip()}"
            for name in self.unexplained
            if name in self.here.details
        ]
        return "\n\n".join(parts)

    def _line(self, name: str) -> str:
        reason = self.excused.get(name)
        if reason is not None:
            return f"  {name}\n    {reason.text} {reason.link}"
        return f"  {name}{' (passed when run again)' if name in self.passed_again else ''}"


def compare(
    here: Outcomes, native: Outcomes, excused: Mapping[str, Reason] | None = None
) -> Comparison:
    """Hold a run on this backend against one on Django's own.

    Args:
        here: the run on this backend.
        native: the run on Django's, with the same settings.
        excused: tests that may differ.
    """

    def among(names: Iterable[str]) -> list[str]:
        return sorted(names)

    failed_here = {name for name, outcome in here.tests.items() if outcome in _FAILED}
    failed_native = {name for name, outcome in native.tests.items() if outcome in _FAILED}
    skipped_native = {name for name, outcome in native.tests.items() if outcome == "skipped"}
    # Where a class or module could not be set up, that has a name of its own, and its tests none.
    return Comparison(
        here=here,
        native=native,
        failed_on_both=among(failed_here & failed_native),
        failed_only_here=among(failed_here - failed_native),
        skipped_only_here=among(
            name
            for name, outcome in here.tests.items()
            if outcome == "skipped" and name not in skipped_native
        ),
        missing_here=among(native.tests.keys() - here.tests.keys() - failed_native),
        passed_only_here=among(
            name
            for name, outcome in here.tests.items()
            if outcome in _PASSED and native.tests.get(name, "passed") not in _PASSED
        ),
        excused=excused or {},
    )


def _count(outcomes: Outcomes, kinds: set[str]) -> int:
    return sum(outcome in kinds for outcome in outcomes.tests.values())


def _engine(outcomes: Outcomes) -> str:
    return outcomes.taken_with.get("engine", "?")
