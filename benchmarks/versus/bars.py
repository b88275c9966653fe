"""What is asked of us, as ratios within one run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .outcome import spread

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .outcome import Outcome

__all__ = ["BARS", "Bar", "table"]

OURS, LENT = "ours, session", "ours, transaction"
NATIVE, CHECKED = "native pool", "native pool, checks"


@dataclass(frozen=True)
class Bar:
    """A figure of ours over the same of another; the limit is one that it may just reach."""

    what: str
    workload: str
    metric: str
    other: str
    limit: float
    at_least: bool = False
    ours: str = OURS

    def pair(self, outcomes: Mapping[str, Outcome]) -> list[list[float]] | None:
        """Return our figures and the other's, by round."""
        outcome = outcomes.get(self.workload)
        if outcome is None or not {self.ours, self.other} <= outcome.figures.keys():
            return None
        return [outcome.figures[name][self.metric] for name in (self.ours, self.other)]

    def row(self, outcomes: Mapping[str, Outcome]) -> str:
        """Return the line of the table."""
        sign = "≥" if self.at_least else "≤"
        line = f"| {self.what} | {self.other} | {self.metric} | {sign} {self.limit:.3g} |"
        pair = self.pair(outcomes)
        if pair is None:
            return line + " | | | not measured |"
        ratios = [mine / its for mine, its in zip(*pair, strict=True)]
        ratio, low, high = spread(ratios)
        # The best of each is what other work on the machine has disturbed least.
        mine, its = map(max if self.at_least else min, pair)
        met = ratio >= self.limit if self.at_least else ratio <= self.limit
        figures = f"**{ratio:.2f}** | {low:.2f} to {high:.2f} | {mine / its:.2f}"
        return f"{line} {figures} | {'met' if met else 'MISSED'} |"


BARS = (
    *(
        Bar(f"cycle, {words}", "cycle", metric, other, limit)
        for metric, words in (("p50", "wall"), ("cpu", "CPU of the client"))
        for other, limit in ((NATIVE, 1.0), (CHECKED, 0.65), ("persistent", 1.1))
    ),
    *(
        Bar("cycle in transaction mode", "cycle", metric, OURS, 1 / 0.85, ours=LENT)
        for metric in ("p50", "cpu")
    ),
    *(
        Bar("HTTP throughput", "http", "rate", other, limit, at_least=True)
        for other, limit in (
            (NATIVE, 1.0),
            (CHECKED, 1.2),
            ("dj_db_conn_pool", 1.2),
            ("per request", 4.0),
        )
    ),
    Bar("HTTP p99", "http", "p99", NATIVE, 1.0),
    Bar("HTTP over TLS + SCRAM", "http_tls", "rate", "per request", 8.0, at_least=True),
    Bar("cycle, 0.5 ms away", "far_500us", "p50", "persistent", 1.02),
    Bar("cycle, 2 ms away", "far_2ms", "p50", "persistent", 1.02),
    Bar("view that waits, max_size 4", "waits", "rate", NATIVE, 6.0, at_least=True, ours=LENT),
    Bar("64 threads on 5 connections", "contention", "rate", NATIVE, 1.0, at_least=True),
)


def table(outcomes: Mapping[str, Outcome]) -> str:
    """Return all of them, as Markdown."""
    head = "| what | ours over | figure | limit | median ratio | rounds | |\n"
    return (
        head
        + "|---|---|---|--:|--:|--:|--:|---|\n"
        + "\n".join(bar.row(outcomes) for bar in BARS)
        + "\n"
    )
