from __future__ import annotations

import pytest

from tests.proof.loads import Attempt, Call
from tests.proof.verdict import Strike, Tally, untruths


def call(outcome: str, *, key: str = "a", callbacks: int | None = None, attempts: int = 1) -> Call:
    """A call whose attempts began at 0, 1, ... on backends 100, 101, ..., and that ended at 10."""
    if callbacks is None:
        callbacks = int(outcome == "acknowledged")
    runs = [Attempt(100 + number, float(number)) for number in range(attempts)]
    return Call(key, outcome, "", runs, 10.0, callbacks)


@pytest.mark.parametrize(
    ("outcome", "times"), [("acknowledged", 1), ("unknown", 0), ("unknown", 1), ("failed", 0)]
)
def test_a_call_told_the_truth_that_is_there_as_often_as_it_was_said(
    outcome: str, times: int
) -> None:
    assert untruths([call(outcome)], {"a": times} if times else {}) == {}


@pytest.mark.parametrize(
    ("outcome", "times"),
    [("acknowledged", 0), ("acknowledged", 2), ("unknown", 2), ("failed", 1), ("failed", 2)],
)
def test_a_call_lied_that_is_there_more_or_less_often(outcome: str, times: int) -> None:
    assert f"{outcome}, and is there {times} times" in untruths([call(outcome)], {"a": times})["a"]


@pytest.mark.parametrize(
    ("outcome", "times", "callbacks"),
    [("acknowledged", 1, 0), ("acknowledged", 1, 2), ("unknown", 1, 1), ("failed", 0, 1)],
)
def test_a_callback_belongs_to_what_was_acknowledged_and_runs_once(
    outcome: str, times: int, callbacks: int
) -> None:
    wrong = untruths([call(outcome, callbacks=callbacks)], {"a": times})
    assert f"called back {callbacks} times" in wrong["a"]


def test_a_row_that_nobody_has_made_is_wrong() -> None:
    assert untruths([], {"b": 1}) == {"b": "is there, and nobody made it"}


@pytest.mark.parametrize(
    ("struck", "outcome", "attempts", "column"),
    [
        (Strike("cut", 100, 0.5), "acknowledged", 1, "found committed"),
        (Strike("cut", 100, 0.5), "acknowledged", 2, "run again"),
        (Strike("cut", 101, 9.5), "acknowledged", 2, "found committed"),
        (Strike("cut", 101, 9.5), "unknown", 2, "unknown"),
        (Strike("cut", 100, 0.5), "failed", 1, "failed"),
        (Strike("cut", 100, 10.5), "acknowledged", 1, "none struck"),
        (Strike("cut", 100, -0.5), "acknowledged", 1, "none struck"),
        (Strike("cut", 99, 0.5), "acknowledged", 1, "none struck"),
        # The first attempt's connection, asked after the second.
        (Strike("cut", 100, 9.5), "acknowledged", 2, "none struck"),
    ],
)
def test_a_fault_is_laid_to_the_attempt_that_had_its_backend_then(
    struck: Strike, outcome: str, attempts: int, column: str
) -> None:
    tally = Tally()
    tally.note_strikes([call(outcome, attempts=attempts)], [struck], {})
    assert tally.rows["cut"][column] == 1
    assert tally.total()["calls"] == (column != "none struck")


def test_the_table_has_a_row_for_each_fault_and_a_total() -> None:
    tally = Tally()
    tally.note("cut", "unknown")
    tally.note("held", "run again", wrong=True)
    assert [line.split() for line in tally.table("faults").splitlines()[1:]] == [
        ["cut", "1", "0", "0", "1", "0", "0"],
        ["held", "1", "0", "1", "0", "0", "1"],
        ["total", "2", "0", "1", "1", "0", "1"],
    ]
