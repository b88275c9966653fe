"""Django's test runner, which also writes down what became of each test.

Runs in the process of ``runtests.py``; the file's name comes by an environment variable.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import TextTestResult

from django.test.runner import DiscoverRunner

from .outcomes import worse

if TYPE_CHECKING:
    from unittest import TestCase, TestSuite

__all__ = ["RecordingResult", "RecordingRunner"]


class RecordingResult(TextTestResult):
    """Prints as usual, and keeps the outcome of every test.

    With ``--parallel`` Django replays here what its worker processes have seen.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.tests: dict[str, str] = {}
        self.details: dict[str, str] = {}

    def _record(self, test: TestCase, outcome: str, detail: str = "") -> None:
        # A subtest counts as its test: in a worker process Django does not tell them apart.
        name = getattr(test, "test_case", test).id()
        self.tests[name] = worse(self.tests.get(name, outcome), outcome)
        if detail:
            self.details[name] = detail

    def addSuccess(self, test: TestCase) -> None:
        super().addSuccess(test)
        self._record(test, "passed")

    def addError(self, test: TestCase, err: Any) -> None:
        super().addError(test, err)
        self._record(test, "errored", self.errors[-1][1])

    def addFailure(self, test: TestCase, err: Any) -> None:
        super().addFailure(test, err)
        self._record(test, "failed", self.failures[-1][1])

    def addSkip(self, test: TestCase, reason: str) -> None:
        super().addSkip(test, reason)
        self._record(test, "skipped", reason)

    def addExpectedFailure(self, test: TestCase, err: Any) -> None:
        super().addExpectedFailure(test, err)
        self._record(test, "expected failure")

    def addUnexpectedSuccess(self, test: TestCase) -> None:
        super().addUnexpectedSuccess(test)
        self._record(test, "unexpected success")

    def addSubTest(self, test: TestCase, subtest: TestCase, err: Any) -> None:
        super().addSubTest(test, subtest, err)
        if err is not None:
            is_failure = issubclass(err[0], test.failureException)
            found = (self.failures if is_failure else self.errors)[-1][1]
            self._record(test, "failed" if is_failure else "errored", found)


class RecordingRunner(DiscoverRunner):
    """Writes a JSON file with the outcomes when the last test has ended."""

    def get_resultclass(self) -> type[RecordingResult]:
        return RecordingResult

    def run_suite(self, suite: TestSuite, **kwargs: Any) -> Any:
        result: Any = super().run_suite(suite, **kwargs)
        record = {"tests": result.tests, "details": result.details}
        Path(os.environ["DJANGO_SUITE_RECORD"]).write_text(json.dumps(record))
        return result
