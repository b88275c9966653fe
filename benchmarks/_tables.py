"""How the benchmarks print what they found: a row for each figure, a column for each engine."""

from __future__ import annotations

import statistics
from math import inf
from typing import TYPE_CHECKING

from _common import ENGINES

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from _common import Engine

    Show = Callable[[Sequence[float | None]], str]

__all__ = ["Figures", "fewest", "milliseconds", "plain", "seconds", "total"]


class Figures:
    """A table that fills up: a row for each figure, a column for each engine.

    Args:
        title: printed above it.
        columns: the engines.
    """

    def __init__(self, title: str, columns: Sequence[Engine] = ENGINES) -> None:
        self._title = title
        self._columns = [engine.name for engine in columns]
        self._rows: dict[str, tuple[Show, list[list[float | None]]]] = {}

    def note(self, row: str, values: Sequence[float | None], show: Show) -> None:
        """Add one repetition's value for each engine; None is what never happened."""
        _, columns = self._rows.setdefault(row, (show, [[] for _ in self._columns]))
        for column, value in zip(columns, values, strict=True):
            column.append(value)

    def print(self) -> None:
        """Print it, as wide as what is in it."""
        cells = [["", *self._columns]]
        cells += [[row, *map(show, columns)] for row, (show, columns) in self._rows.items()]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        print(f"\n{self._title}")
        for name, *others in cells:
            shown = [one.rjust(width) for one, width in zip(others, widths[1:], strict=True)]
            print("  ".join([name.ljust(widths[0]), *shown]), flush=True)


def seconds(values: Sequence[float | None]) -> str:
    """Return median and worst."""
    return _median_and_worst(values, lambda value: f"{value:.2f} s")


def milliseconds(values: Sequence[float | None]) -> str:
    """Return median and worst of seconds, in milliseconds."""
    return _median_and_worst(values, lambda value: f"{value * 1e3:.0f} ms")


def plain(values: Sequence[float | None]) -> str:
    """Return median and worst of what has no unit."""
    return _median_and_worst(values, lambda value: f"{value:.3g}")


def fewest(values: Sequence[float | None]) -> str:
    """Return median and worst of what has no unit, where more is better."""
    return _median_and_worst(values, lambda value: f"{value:.3g}", worst=min)


def total(values: Sequence[float | None]) -> str:
    """Return the sum."""
    return f"{sum(value or 0 for value in values):g}"


def _median_and_worst(
    values: Sequence[float | None],
    show: Callable[[float], str],
    worst: Callable[[list[float]], float] = max,
) -> str:
    numbers = [inf if value is None else value for value in values]
    shown = [statistics.median(numbers), worst(numbers)][-min(len(numbers), 2) :]
    return " / ".join("never" if number == inf else show(number) for number in shown)
