"""Durations in buckets: what they add up to, the longest, and any percentile."""

from __future__ import annotations

from bisect import bisect_left
from itertools import accumulate
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["BOUNDS", "Histogram"]

BOUNDS: tuple[float, ...] = (
    *(
        step * 10.0**decade
        for decade in range(-4, 2)
        for step in (1.0, 1.5, 2.2, 3.3, 4.7, 6.8)
    ),
    100.0,
)  # fmt: skip
"""Upper bounds of the buckets in seconds, inclusive; one more bucket holds what is longer."""


class Histogram:
    """Durations, counted by size; not safe to record into from several threads at once.

    Six buckets for each power of ten keep a percentile within a fifth of the truth.
    """

    __slots__ = ("buckets", "longest", "total")

    def __init__(self) -> None:
        self.buckets: list[int] = [0] * (len(BOUNDS) + 1)
        """How many durations were in each."""
        self.total: float = 0.0
        """Seconds, of all durations together."""
        self.longest: float = 0.0
        """Seconds."""

    @classmethod
    def from_report(cls, figures: Mapping[str, Any]) -> Histogram:
        """Read what `as_report` gave."""
        made = cls()
        made.buckets, made.total, made.longest = (figures[key] for key in ("buckets", "sum", "max"))
        return made

    def as_report(self) -> dict[str, Any]:
        """Return count, sum and max (seconds) and the buckets, in values that JSON can carry."""
        return {
            "count": self.count,
            "sum": self.total,
            "max": self.longest,
            "buckets": list(self.buckets),
        }

    @property
    def count(self) -> int:
        """How many durations were recorded."""
        return sum(self.buckets)

    def record(self, seconds: float) -> None:
        """Count one duration."""
        self.buckets[bisect_left(BOUNDS, seconds)] += 1
        self.total += seconds
        if seconds > self.longest:
            self.longest = seconds

    def copy(self) -> Histogram:
        """Return one that stays as this one is now."""
        made = Histogram()
        made.buckets, made.total, made.longest = list(self.buckets), self.total, self.longest
        return made

    def quantile(self, share: float) -> float | None:
        """Return the duration that *share* of all (0 to 1) did not exceed; None without any.

        Within its bucket it is interpolated; in the last one it is the longest.
        """
        count = self.count
        if not count:
            return None
        rank = max(share * count, 1e-9)
        passed = list(accumulate(self.buckets))
        bucket = bisect_left(passed, rank)
        if bucket == len(BOUNDS):
            return self.longest
        lower = BOUNDS[bucket - 1] if bucket else 0.0
        inside = rank - (passed[bucket] - self.buckets[bucket])
        found = lower + (BOUNDS[bucket] - lower) * inside / self.buckets[bucket]
        return min(found, self.longest)
