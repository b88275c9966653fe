"""The pools as a table: a line for each database, and below it one for each process."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .words import count, cut, duration, many

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .overview import Overview
    from .rows import Group, PoolRow


__all__ = ["FEW", "ORDERS", "busiest_first", "lines"]

FEW = 8
"""Processes of one database that are all shown without being asked for."""

BUSIEST = 5
"""How many are shown where there are more."""

_COLUMNS = (
    ("", -22),
    ("in use", 9),
    ("used", 4),
    ("idle", 4),
    ("number", 6),
    ("longest", 7),
    ("done", 7),
    ("failed", 6),
    ("p50", 6),
    ("p95", 6),
    ("p99", 6),
    ("max", 6),
)
"""Heading and width; a negative width aligns to the left."""

_ABOVE = (
    ("", 22),
    ("connections", 19),
    ("waiting", 14),
    ("checkouts", 14),
    ("wait for a connection", 27),
)
"""What stands above several headings, and their width together."""

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


def lines(overview: Overview, *, processes: int | None = None, order: str = "waiting") -> list[str]:
    """Lay the pools out; counts and times are a second's where the overview is of some seconds.

    Args:
        processes: How many to show for each database; None for all if they are few, else for
            the busiest.
        order: One of ``ORDERS``.
    """
    headings = [name for name, _ in _COLUMNS]
    headings[0] = "database, process"
    if overview.seconds is not None:
        headings[headings.index("done")] = "per s"
    found = [_above(), _line(headings)]
    for group in overview.groups:
        rows = busiest_first(group.rows, order)
        most = (len(rows) if len(rows) <= FEW else BUSIEST) if processes is None else processes
        if most and len(rows) == most + 1:
            # The line that would say so has room for it.
            most += 1
        name = f"{group.alias}, {many(len(rows), 'process', 'processes')}"
        if len(rows) == 1 and most:
            found.append(_row(f"{group.alias}, {_process(rows[0])}", group, rows, overview))
            continue
        found.append(_row(name, group, rows, overview))
        found += [_row(f"  {_process(row)}", group, [row], overview) for row in rows[:most]]
        if 0 < most < len(rows):
            found.append(f"  ... and {len(rows) - most} more (--processes shows all)")
    return found


def _process(row: PoolRow) -> str:
    return f"{row.pid} {row.command}"


def _row(name: str, group: Group, rows: Sequence[PoolRow], overview: Overview) -> str:
    part = type(group)(group.alias, group.server, list(rows))
    totals, wait = part.totals, part.times("wait")
    failed = sum(row.failed for row in rows)
    done = totals["checkouts"] / (overview.seconds or 1.0)
    few_a_second = overview.seconds is not None and done < 1000
    return _line(
        [
            name,
            f"{count(totals['in_use'], 10_000)}/{count(totals['max_size'], 10_000)}",
            f"{part.utilisation:.0%}",
            count(totals["idle"], 10_000),
            count(totals["waiting"]),
            duration(part.longest_waiting),
            f"{done:.1f}" if few_a_second else count(done),
            count(failed),
            *(duration(wait.quantile(share)) for share in (0.5, 0.95, 0.99)),
            duration(wait.longest if wait.count else None),
        ]
    )


def _above() -> str:
    """Return the line above the headings: "-- waiting --"."""
    cells = [f" {name} ".center(width, "-") if name else " " * width for name, width in _ABOVE]
    return " ".join(cells)


def _line(cells: Sequence[str]) -> str:
    return " ".join(
        f"{cut(cell, -width):<{-width}}" if width < 0 else f"{cut(cell, width):>{width}}"
        for cell, (_, width) in zip(cells, _COLUMNS, strict=True)
    ).rstrip()
