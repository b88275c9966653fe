"""The pools as a table: a line for each database, and below it one for each process."""

from __future__ import annotations

from dataclasses import replace
from itertools import groupby
from typing import TYPE_CHECKING

from django_pooled.poolstats.formatting import cut, many

from .columns import COLUMNS, Line

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from django_pooled.poolstats.overview import Overview
    from django_pooled.poolstats.rows import PoolRow

    from .columns import Column

__all__ = ["FEW", "ORDERS", "busiest_first", "lines"]

FEW = 8
"""Processes of one database that are all shown without being asked for."""

BUSIEST = 5
"""How many are shown where there are more."""

WIDE = 100
"""Columns of a terminal that has room for the whole table."""

ORDERS: dict[str, Callable[[PoolRow], float]] = {
    "waiting": lambda row: -row.pool.waiting,
    "in use": lambda row: -row.utilisation,
    "checkouts": lambda row: -row.counters.checkouts,
    "wait p99": lambda row: -(row.counters.wait.quantile(0.99) or 0.0),
    "pid": lambda row: row.process.pid,
}
"""The orders in which processes can be sorted."""


def busiest_first(rows: Sequence[PoolRow], order: str = "waiting") -> list[PoolRow]:
    """Sort the pools of processes; equal ones by how much they are used."""
    keys = [ORDERS[name] for name in (order, "waiting", "in use", "pid")]
    return sorted(rows, key=lambda row: [key(row) for key in keys])


def lines(
    overview: Overview,
    *,
    processes: int | None = None,
    order: str = "waiting",
    width: int = WIDE,
    hint: str = "--processes shows all",
) -> list[str]:
    """Lay the pools out; counts and times are a second's where the overview is of some seconds.

    Args:
        processes: How many to show for each database; None for all if they are few, else for
            the busiest.
        order: One of ``ORDERS``.
        width: Columns of the terminal.
        hint: How to see more processes.
    """
    columns = [column for column in COLUMNS if column.essential or width >= WIDE]
    seconds = overview.seconds
    headings = [
        column.heading if seconds is None else column.heading_of_seconds or column.heading
        for column in columns
    ]
    found = [_above(columns), _laid_out(columns, headings)]
    for group in overview.groups:
        rows = busiest_first(group.rows, order)
        most = (len(rows) if len(rows) <= FEW else BUSIEST) if processes is None else processes
        if most and len(rows) == most + 1:
            # It takes no more room than the line that says how many are left out.
            most += 1
        name = f"{group.alias}, {many(len(rows), 'process', 'processes')}"
        if len(rows) == 1 and most:
            name, most = f"{group.alias}, {_process(rows[0])}", 0
        if group.name != group.alias:
            found.append(cut(f"{group.name}:", width))
        shown = [Line(name, group, seconds)]
        shown += [
            Line(f"  {_process(row)}", replace(group, rows=[row]), seconds) for row in rows[:most]
        ]
        found += [_laid_out(columns, [column.text(line) for column in columns]) for line in shown]
        if 0 < most < len(rows):
            found.append(f"  ... and {len(rows) - most} more ({hint})")
    return found


def _process(row: PoolRow) -> str:
    return f"{row.process.pid} {row.process.command}"


def _above(columns: Sequence[Column]) -> str:
    """Return the line above the headings: "-- waiting --"."""
    cells = []
    for above, below in groupby(columns, key=lambda column: column.above):
        widths = [column.width for column in below]
        room = sum(widths) + len(widths) - 1
        name = above if len(above) + 2 <= room else above.partition(" ")[0]
        cells.append(f" {name} ".center(room, "-") if name else " " * room)
    return " ".join(cells)


def _laid_out(columns: Sequence[Column], cells: Sequence[str]) -> str:
    first, *others = zip(columns, cells, strict=True)
    name = f"{cut(first[1], first[0].width):<{first[0].width}}"
    figures = [f"{cut(cell, column.width):>{column.width}}" for column, cell in others]
    return " ".join([name, *figures]).rstrip()
