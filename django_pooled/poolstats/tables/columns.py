"""The columns of the table of pools: heading, width, and how each cell is written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from django_pooled.poolstats.formatting import count, duration

if TYPE_CHECKING:
    from collections.abc import Callable

    from django_pooled.poolstats.rows import Group

__all__ = ["COLUMNS", "Column", "Line"]


class Line(NamedTuple):
    """What one line of the table shows."""

    name: str
    """The database or the process."""
    group: Group
    """Its pools."""
    seconds: float | None
    """Time that counters are of; None: since each pool was opened."""


@dataclass(frozen=True)
class Column:
    """One column."""

    above: str
    """Stands over this heading and its neighbours."""
    heading: str
    width: int
    text: Callable[[Line], str]
    essential: bool = True
    """Whether a narrow terminal gets it too."""
    heading_of_seconds: str = ""
    """Takes the heading's place where counters are of some seconds."""


def _in_use(line: Line) -> str:
    in_use, most = line.group.sum("in_use"), line.group.sum("max_size")
    return f"{count(in_use, 10_000)}/{count(most, 10_000)}"


def _pace(line: Line, number: int) -> str:
    """Write a count, or how many there were a second."""
    if line.seconds is None:
        return count(number)
    pace = number / (line.seconds or 1.0)
    return f"{pace:.1f}" if 0 < pace < 1000 else count(pace)


def _wait(share: float) -> Callable[[Line], str]:
    return lambda line: duration(line.group.counters.wait.quantile(share))


CONNECTIONS, WAITING, CHECKOUTS = "connections", "waiting", "checkouts"
WAITS = "wait for a connection"

COLUMNS = (
    Column("", "database, process", 22, lambda line: line.name),
    Column(CONNECTIONS, "in use", 9, _in_use),
    Column(CONNECTIONS, "used", 4, lambda line: f"{line.group.utilisation:.0%}", essential=False),
    Column(CONNECTIONS, "idle", 4, lambda line: count(line.group.sum("idle"), 10_000)),
    Column(WAITING, "now", 5, lambda line: count(line.group.sum("waiting"))),
    Column(WAITING, "longest", 7, lambda line: duration(line.group.longest_waiting)),
    Column(
        CHECKOUTS,
        "done",
        7,
        lambda line: _pace(line, line.group.counters.checkouts),
        heading_of_seconds="per s",
    ),
    Column(
        CHECKOUTS,
        "failed",
        6,
        lambda line: _pace(line, line.group.failed),
        heading_of_seconds="fail/s",
    ),
    Column(WAITS, "p50", 6, _wait(0.5)),
    Column(WAITS, "p95", 6, _wait(0.95), essential=False),
    Column(WAITS, "p99", 6, _wait(0.99)),
    Column(WAITS, "max", 6, _wait(1.0), essential=False),
)
"""From left to right; docs/poolstats.md says what each is."""
