"""The comparison with Django's own engine: what it counts, and that it cannot pass by mistake."""

from __future__ import annotations

import io
import unittest
from typing import TYPE_CHECKING

import pytest

from tests.django_suite.comparison import Reason, compare
from tests.django_suite.known import KNOWN, KNOWN_IN_TRANSACTION_MODE
from tests.django_suite.outcomes import Outcomes
from tests.django_suite.recorder import RecordingResult
from tests.django_suite.releases import RELEASES, Release, ReleaseError

if TYPE_CHECKING:
    from pathlib import Path


def outcomes(**tests: str) -> Outcomes:
    return Outcomes({f"app.tests.Some.{name}": outcome for name, outcome in tests.items()})


NATIVE = outcomes(a="passed", b="passed", c="failed", d="skipped", e="expected failure")


def test_equal_runs_need_no_explanation() -> None:
    comparison = compare(NATIVE, NATIVE)
    assert comparison.unexplained == []
    assert comparison.failed_on_both == ["app.tests.Some.c"]


@pytest.mark.parametrize("outcome", ["failed", "errored", "unexpected success", "skipped"])
def test_a_test_that_does_not_pass_only_here_is_told(outcome: str) -> None:
    here = Outcomes({**NATIVE.tests, "app.tests.Some.a": outcome})
    comparison = compare(here, NATIVE)
    assert comparison.unexplained == ["app.tests.Some.a"]
    kind = "skipped" if outcome == "skipped" else "failed"
    assert f"{kind} only here:\n  app.tests.Some.a" in comparison.report()


def test_a_test_that_is_skipped_there_and_fails_here_is_told() -> None:
    here = Outcomes({**NATIVE.tests, "app.tests.Some.d": "failed"})
    assert compare(here, NATIVE).failed_only_here == ["app.tests.Some.d"]


def test_a_test_that_fails_there_and_is_skipped_here_is_told() -> None:
    here = Outcomes({**NATIVE.tests, "app.tests.Some.c": "skipped"})
    assert compare(here, NATIVE).skipped_only_here == ["app.tests.Some.c"]


def test_a_test_that_was_not_run_here_is_told() -> None:
    here = Outcomes({"app.tests.Some.b": "passed"})
    assert "app.tests.Some.a" in compare(here, NATIVE).unexplained


def test_a_run_that_is_empty_is_no_success() -> None:
    assert compare(Outcomes({}), NATIVE).unexplained


def test_a_test_that_passes_only_here_is_counted() -> None:
    here = Outcomes({**NATIVE.tests, "app.tests.Some.c": "passed", "app.tests.Some.d": "passed"})
    comparison = compare(here, NATIVE)
    assert comparison.passed_only_here == ["app.tests.Some.c", "app.tests.Some.d"]
    assert comparison.unexplained == []


def test_a_difference_on_the_list_is_shown_with_its_reason_and_does_not_fail() -> None:
    here = Outcomes({**NATIVE.tests, "app.tests.Some.a": "failed"})
    listed = {"app.tests.Some.a": Reason("It cannot.", "https://example.org/why")}
    comparison = compare(here, NATIVE, listed)
    assert comparison.unexplained == []
    assert "It cannot. https://example.org/why" in comparison.report()


def test_every_difference_on_the_list_has_a_reason_and_a_link() -> None:
    for name, reason in {**KNOWN, **KNOWN_IN_TRANSACTION_MODE}.items():
        assert len(reason.text) > 40, name
        assert reason.link.startswith("https://"), name


def test_a_failure_counts_unless_the_test_passes_when_run_again() -> None:
    here = Outcomes({**NATIVE.tests, "app.tests.Some.a": "failed", "app.tests.Some.b": "failed"})
    again = Outcomes({"app.tests.Some.a": "passed", "app.tests.Some.b": "failed"})
    comparison = compare(here, NATIVE).with_another_run(again)
    assert comparison.failed_only_here == ["app.tests.Some.a", "app.tests.Some.b"]
    assert comparison.unexplained == ["app.tests.Some.b"]
    assert "app.tests.Some.a (passed when run again)" in comparison.report()


def test_what_failed_only_here_is_shown_with_its_traceback() -> None:
    here = Outcomes(
        {**NATIVE.tests, "app.tests.Some.a": "failed"},
        details={"app.tests.Some.a": "AssertionError: 1 != 2"},
    )
    assert "AssertionError: 1 != 2" in compare(here, NATIVE).report()


def test_outcomes_are_the_same_after_they_were_kept(tmp_path: Path) -> None:
    taken = Outcomes(
        {**NATIVE.tests, "setUpClass (app.tests.Other)": "skipped"}, {"Django": "6.1"}, 3.0
    )
    taken.save(tmp_path / "kept.json")
    kept = Outcomes.load(tmp_path / "kept.json")
    assert (kept.tests, kept.taken_with, kept.seconds) == (taken.tests, taken.taken_with, 3.0)


def test_a_label_chooses_whole_modules_and_classes_only() -> None:
    taken = Outcomes(
        {
            "app.tests.Some.a": "passed",
            "app_more.tests.Some.a": "passed",
            "setUpClass (app.tests.Other)": "skipped",
        }
    )
    assert set(taken.only(["app"]).tests) == {"app.tests.Some.a", "setUpClass (app.tests.Other)"}
    assert taken.only([]) is taken


class Samples(unittest.TestCase):
    """One test for each outcome; not collected by pytest."""

    __test__ = False

    def passes(self) -> None:
        pass

    def fails(self) -> None:
        self.fail("as it should")

    def errs(self) -> None:
        raise ValueError

    def skips(self) -> None:
        self.skipTest("for a reason")

    @unittest.expectedFailure
    def fails_as_expected(self) -> None:
        self.fail("as expected")

    @unittest.expectedFailure
    def passes_unexpectedly(self) -> None:
        pass

    def fails_in_the_second_of_three(self) -> None:
        for number in range(3):
            with self.subTest(number=number):
                assert number != 1

    def errs_in_one_of_two(self) -> None:
        for number in range(2):
            with self.subTest(number=number):
                if number:
                    raise ValueError

    def skips_one_of_two(self) -> None:
        for number in range(2):
            with self.subTest(number=number):
                if number:
                    self.skipTest("only one")


SAMPLES = {
    "passes": "passed",
    "fails": "failed",
    "errs": "errored",
    "skips": "skipped",
    "fails_as_expected": "expected failure",
    "passes_unexpectedly": "unexpected success",
    "fails_in_the_second_of_three": "failed",
    "errs_in_one_of_two": "errored",
    "skips_one_of_two": "skipped",
}


def test_the_recorder_keeps_what_became_of_each_test() -> None:
    suite = unittest.TestSuite(Samples(name) for name in SAMPLES)
    found = unittest.TextTestRunner(io.StringIO(), resultclass=RecordingResult).run(suite)
    assert isinstance(found, RecordingResult)
    assert found.tests == {
        f"{__name__}.Samples.{name}": outcome for name, outcome in SAMPLES.items()
    }
    assert "as it should" in found.details[f"{__name__}.Samples.fails"]
    assert found.details[f"{__name__}.Samples.skips"] == "for a reason"


def test_a_class_that_cannot_be_set_up_counts_as_an_error() -> None:
    class Broken(unittest.TestCase):
        __test__ = False

        @classmethod
        def setUpClass(cls) -> None:
            raise ValueError("no set-up")

        def passes(self) -> None:
            pass

    suite = unittest.TestSuite([Broken("passes")])
    found = unittest.TextTestRunner(io.StringIO(), resultclass=RecordingResult).run(suite)
    assert isinstance(found, RecordingResult)
    assert list(found.tests.values()) == ["errored"]


def test_a_release_is_found_with_a_python_that_it_runs_on() -> None:
    release = Release.find("5.2")
    assert release.version == RELEASES["5.2"][0]
    assert release.name.startswith(f"django-{release.version}-python3.")


def test_an_unknown_release_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(ReleaseError, match=r"'4\.2' is not known here; expected one of 5\.2"):
        Release.find("4.2")
