"""What the benchmarks make of their figures."""

from __future__ import annotations

from benchmarks.versus.outcome import Metric, Outcome, joined


def outcome(figures: dict[str, list[float]], absent: dict[str, str] | None = None) -> Outcome:
    return Outcome(
        "cycle",
        "A cycle",
        [Metric("wall", "wall")],
        {"rounds": 2},
        {name: {"wall": values} for name, values in figures.items()},
        absent or {},
    )


def test_the_rounds_of_several_launches_count_alike() -> None:
    first, second = outcome({"ours": [1.0, 3.0]}), outcome({"ours": [2.0, 9.0]})
    whole = joined([first, second])
    assert whole.figures == {"ours": {"wall": [1.0, 3.0, 2.0, 9.0]}}
    assert "**2** (1 to 9)" in whole.markdown()
    assert "2, each with that many rounds" in whole.markdown()


def test_one_launch_is_left_as_it_is() -> None:
    assert joined([outcome({"ours": [1.0]})]) == outcome({"ours": [1.0]})


def test_who_was_missing_in_one_launch_is_missing() -> None:
    whole = joined(
        [
            outcome({"ours": [1.0], "theirs": [1.0]}),
            outcome({"ours": [2.0]}, {"theirs": "it broke"}),
            outcome({"ours": [3.0], "theirs": [3.0]}),
        ]
    )
    assert whole.figures == {"ours": {"wall": [1.0, 2.0, 3.0]}}
    assert "theirs is missing: it broke" in whole.markdown()
