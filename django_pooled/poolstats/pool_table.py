"""The pools as a table: a line for each database, and below it one for each process."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

from .formatting import count, cut, duration, many

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .overview import Overview
    from .rows import Group, PoolRow


__all__ = ["FEW", "ORDERS", "busiest_first", "lines"]

FEW = 8
"""Processes of one database that are all shown without being asked for."""

BUSIEST = 5
"""How many are shown where there are more."""

WIDE = 100
"""Columns of a terminal that has room for all of the table's; narrower ones get the essential."""


class _Column(NamedTuple):
    above: str
    """What stands over this heading and its neighbours."""
    heading: str
    width: int
    essential: bool = True


_COLUMNS = (
    _Column("", "database, process", 22),
    _Column("connections", "in use", 9),
    _Column("connections", "used", 4, essential=False),
    _Column("connections", "idle", 4),
    _Column("waiting", "now", 5),
    _Column("waiting", "longest", 7),
    _Column("checkouts", "done", 7),
    _Column("checkouts", "failed", 6),
    _Column("wait for a connection", "p50", 6),
    _Column("wait for a connection", "p95", 6, essential=False),
    _Column("wait for a connection", "p99", 6),
    _Column("wait for a connection", "max", 6, essential=False),
)

ORDERS: dict[str, Callable[[PoolRow], float]] = {
    "waiting": lambda row: -row.number("waiting"),
    "in use": lambda row: -row.utilisation,
    "checkouts": lambda row: -row.number("checkouts"),
    "wait p99": lambda row: -(row.times("wait").quantile(0.99) or 0.0),
    "pid": lambda row: row.pid,
}
"""What processes can be sorted by, and how."""


def busiest_first(rows: Sequence[PoolRow], order: str = "waiting") -> list[PoolRow]:
    """Sort the pools of processes; those that are alike in this by how much they are used."""
    first = ORDERS[order]
    return sorted(
        rows, key=lambda row: (first(row), -row.number("waiting"), -row.utilisation, row.pid)
    )


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
    headings = [column.heading for column in _COLUMNS]
    if overview.seconds is not None:
        headings[headings.index("done")] = "per s"
    found = [_above(width), _line(headings, width)]
    for group in overview.groups:
        rows = busiest_first(group.rows, order)
        most = (len(rows) if len(rows) <= FEW else BUSIEST) if processes is None else processes
        if most and len(rows) == most + 1:
            # The line that would say so has room for it.
            most += 1
        name = f"{group.alias}, {many(len(rows), 'process', 'processes')}"
        if len(rows) == 1 and most:
            name, most = f"{group.alias}, {_process(rows[0])}", 0
        if group.name != group.alias:
            found.append(cut(f"{group.name}:", width))
        found.append(_line(_cells(name, group, rows, overview), width))
        for row in rows[:most]:
            cells = _cells(f"  {_process(row)}", group, [row], overview)
            found.append(_line(cells, width))
        if 0 < most < len(rows):
            found.append(f"  ... and {len(rows) - most} more ({hint})")
    return found


def _process(row: PoolRow) -> str:
    return f"{row.pid} {row.command}"


def _cells(name: str, group: Group, rows: Sequence[PoolRow], overview: Overview) -> list[str]:
    part = type(group)(group.alias, group.server, list(rows), group.user)
    totals, wait = part.totals, part.times("wait")
    done = totals["checkouts"] / (overview.seconds or 1.0)
    few_a_second = overview.seconds is not None and done < 1000
    return [
        name,
        f"{count(totals['in_use'], 10_000)}/{count(totals['max_size'], 10_000)}",
        f"{part.utilisation:.0%}",
        count(totals["idle"], 10_000),
        count(totals["waiting"]),
        duration(part.longest_waiting),
        f"{done:.1f}" if few_a_second else count(done),
        count(sum(row.failed for row in rows)),
        *(duration(wait.quantile(share)) for share in (0.5, 0.95, 0.99)),
        duration(wait.longest if wait.count else None),
    ]


def _shown(width: int) -> list[int]:
    """Return the numbers of the columns that there is room for."""
    return [n for n, column in enumerate(_COLUMNS) if column.essential or width >= WIDE]


def _above(width: int) -> str:
    """Return the line above the headings: "-- waiting --"."""
    cells = []
    for above, numbers in groupby(_shown(width), key=lambda number: _COLUMNS[number].above):
        widths = [_COLUMNS[number].width for number in numbers]
        room = sum(widths) + len(widths) - 1
        name = above if len(above) + 2 <= room else above.partition(" ")[0]
        cells.append(f" {name} ".center(room, "-") if name else " " * room)
    return " ".join(cells)


def _line(cells: Sequence[str], width: int) -> str:
    first, *others = _shown(width)
    name = f"{cut(cells[first], _COLUMNS[first].width):<{_COLUMNS[first].width}}"
    figures = (
        f"{cut(cells[number], _COLUMNS[number].width):>{_COLUMNS[number].width}}"
        for number in others
    )
    return " ".join([name, *figures]).rstrip()
