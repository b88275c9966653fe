"""An overview as text for a terminal of 100 columns."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from .findings import Level

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .findings import Finding
    from .overview import Group, Overview, PoolRow
    from .server_view import ServerView

__all__ = ["WIDTH", "plain", "render"]

WIDTH = 100

_COLUMNS = (
    ("pid", -7),
    ("command", -13),
    ("database", -12),
    ("in use", 6),
    ("idle", 5),
    ("waiting", 7),
    ("size/max", 9),
    ("checkouts", 9),
    ("avg wait", 8),
    ("failed", 6),
    ("restarts", 8),
)
"""Heading and width; a negative width aligns to the left."""


def render(
    overview: Overview,
    findings: Sequence[Finding],
    *,
    previous: Overview | None = None,
    max_rows: int | None = None,
    width: int = WIDTH,
    paint: Callable[[Level, str], str] = lambda level, text: text,
) -> list[str]:
    """Lay out an overview in lines.

    Args:
        previous: An earlier one; checkouts and waits are then those since, per second.
        max_rows: How many processes to show for each database; those with the most waiting
            come first. None shows all, by pid.
        width: Columns of the terminal.
        paint: Colours the word that says how bad a finding is.
    """
    lines = []
    if overview.groups:
        rates = previous is not None
        headings = ["out/s" if rates and name == "checkouts" else name for name, _ in _COLUMNS]
        lines.append(_line(headings))
        for group in overview.groups:
            lines += _group(group, _Since(overview, previous), max_rows)
        lines += [f"{pid:<7} silent" for pid in overview.collection.silent]
        lines.append("")
    for names, server in overview.servers_by_address:
        if server.error is None:
            lines += [*_server(names, server), ""]
    for level, sentence in findings:
        word = "note" if level is Level.FINE else level.name.lower()
        first, *rest = textwrap.wrap(plain(sentence), min(width, WIDTH) - 10) or [""]
        lines.append(f"{paint(level, word)}{' ' * (10 - len(word))}{first}")
        lines += [" " * 10 + line for line in rest]
    return lines


class _Since:
    """What a pool did since an earlier overview, or since it was opened if there is none."""

    def __init__(self, overview: Overview, previous: Overview | None) -> None:
        self.seconds = overview.taken - previous.taken if previous else None
        groups = previous.groups if previous else []
        self._earlier = {
            (group.alias, group.server, row.pid): row for group in groups for row in group.rows
        }

    def count(self, group: Group, rows: Sequence[PoolRow], key: str) -> float:
        total = 0.0
        for row in rows:
            earlier = self._earlier.get((group.alias, group.server, row.pid))
            now = row.number(key)
            before = earlier.number(key) if earlier else 0
            # A pool that was opened anew counts from 0 again.
            total += now - before if now >= before else now
        return total


def _group(group: Group, since: _Since, max_rows: int | None) -> list[str]:
    rows: Sequence[PoolRow] = group.rows
    if max_rows is not None and len(rows) > max_rows:
        busiest = sorted(rows, key=lambda row: (-row.number("waiting"), -row.number("in_use")))
        rows = busiest[:max_rows]
    lines = [_row(str(row.pid), row.command, group, [row], since) for row in rows]
    if hidden := len(group.rows) - len(rows):
        lines.append(f"...     {hidden} more")
    many = f"{len(group.rows)} process{'es' if len(group.rows) > 1 else ''}"
    total = _row("total", many, group, group.rows, since)
    return [*lines, total, *_retries(group), *_pinned(group)]


def _retries(group: Group) -> list[str]:
    restarts, lost, left = (
        group.counts("restarts"), group.counts("lost_commits"), group.least_budget_left
    )  # fmt: skip
    if not restarts and not lost:
        return []
    by_kind = ", ".join(f"{_count(count)} x {kind}" for kind, count in restarts.most_common())
    parts = [f"restarts: {by_kind or 'none'}"]
    if lost:
        outcomes = ", ".join(f"{_count(count)} {kind}" for kind, count in lost.most_common())
        parts.append(f"COMMITs without an answer: {outcomes}")
    if left is not None:
        parts.append(f"budget left: {left:.0f}")
    return [_cut(f"{'':7} {'; '.join(parts)}", WIDTH)]


def _pinned(group: Group) -> list[str]:
    """Say what kept connections with their request, in transaction mode."""
    pinned = group.counts("pinned").most_common()
    if not pinned:
        return []
    by_kind = ", ".join(f"{_count(count)} x {state}" for state, count in pinned)
    return [_cut(f"{'':7} kept to the end of their request: {by_kind}", WIDTH)]


def _row(first: str, second: str, group: Group, rows: Sequence[PoolRow], since: _Since) -> str:
    def total(key: str) -> float:
        return sum(row.number(key) for row in rows)

    checkouts = since.count(group, rows, "checkouts")
    waited = since.count(group, rows, "wait.sum")
    pace = _count(checkouts) if since.seconds is None else f"{checkouts / since.seconds:.1f}"
    return _line(
        [
            *(first, second, group.alias),
            *(_count(total("in_use")), _count(total("idle")), _count(total("waiting"))),
            f"{_count(total('size'), 10_000)}/{_count(total('max_size'), 10_000)}",
            pace,
            _duration(waited / checkouts) if checkouts else "-",
            _count(total("timeouts") + total("exhausted") + total("refused")),
            _count(sum(row.restarts for row in rows)),
        ]
    )


def _line(cells: Sequence[str]) -> str:
    return " ".join(
        f"{_cut(cell, -width):<{-width}}" if width < 0 else f"{cell:>{width}}"
        for cell, (_, width) in zip(cells, _COLUMNS, strict=True)
    )


def _server(names: str, server: ServerView) -> list[str]:
    standby = ", a standby" if server.standby else ""
    reserved = f", {server.reserved} reserved" if server.reserved else ""
    states = ", ".join(f"{count} {state}" for state, count in sorted(server.states.items()))
    age = server.longest_idle_in_transaction
    longest = f" (longest {_duration(age)})" if age is not None else ""
    blocked = f", {server.blocked} waiting for a lock" if server.blocked else ""
    lines = [
        f"PostgreSQL {server.version}{standby} of {names}: {server.used} of "
        f"{server.max_connections} connections used, {server.free} free{reserved}",
        f"sessions  {states or 'none'}{longest}{blocked}",
    ]
    return [_cut(line, WIDTH) for line in lines]


def _count(number: float, limit: int = 100_000) -> str:
    if number < limit:
        return f"{number:.0f}"
    return f"{number / 1e3:.0f}k" if number < 1e6 else f"{number / 1e6:.1f}M"


def _duration(seconds: float) -> str:
    if seconds < 1.0:
        return f"{seconds * 1e3:.{0 if seconds > 0.1 else 1}f} ms"
    return f"{seconds:.1f} s" if seconds < 600 else f"{seconds / 60:.0f} min"


def _cut(text: str, width: int) -> str:
    text = plain(text)
    return text if len(text) <= width else text[: width - 3] + "..."


def plain(text: str) -> str:
    """Return a text without what would move the cursor or colour the terminal."""
    return "".join(character if character.isprintable() else "?" for character in text)
