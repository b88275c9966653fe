"""Judges calls by what the database holds, and counts what came of each fault."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any, NamedTuple

import psycopg

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from embedded_postgres import EmbeddedServer
    from tests.proof.loads import Call

__all__ = ["COLUMNS", "Strike", "Tally", "fate", "snapshot", "stored", "untruths"]

COLUMNS = ("calls", "found committed", "run again", "unknown", "failed", "wrong")


class Strike(NamedTuple):
    """A fault that befell a connection."""

    fault: str
    backend_pid: int
    at: float


def snapshot(server: EmbeddedServer) -> psycopg.Connection[Any]:
    """Return a connection that sees one state: a COMMIT that was held back may still be done."""
    connection = psycopg.connect(**server.parameters())
    connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    return connection


def stored(server: EmbeddedServer) -> tuple[Counter[str], int]:
    """Return how often each call's row is there, and what the counters are worth together."""
    with snapshot(server) as connection:
        rows = Counter(key for (key,) in connection.execute("SELECT key FROM done"))
        row = connection.execute("SELECT sum(value)::int FROM counter").fetchone()
    assert row is not None
    return rows, row[0]


def untruths(calls: Iterable[Call], rows: Mapping[str, int]) -> dict[str, str]:
    """Return what is wrong with each call of which something is; empty if all told the truth."""
    wrong = {}
    expected = {"acknowledged": (1,), "unknown": (0, 1), "failed": (0,)}
    known = set()
    for call in calls:
        known.add(call.key)
        times = rows.get(call.key, 0)
        callbacks = int(call.outcome == "acknowledged")
        if times not in expected[call.outcome]:
            wrong[call.key] = f"{call.outcome}, and is there {times} times: {call}"
        elif call.callbacks != callbacks:
            wrong[call.key] = f"{call.outcome}, and called back {call.callbacks} times: {call}"
    wrong |= dict.fromkeys(rows.keys() - known, "is there, and nobody made it")
    return wrong


def fate(call: Call, attempt: int) -> str:
    """Return the column that tells what came of the attempt that was struck."""
    if attempt + 1 < len(call.attempts):
        return "run again"
    return "found committed" if call.outcome == "acknowledged" else call.outcome


class Tally:
    """Counts by kind of fault what came of the calls that were struck."""

    def __init__(self) -> None:
        self.rows: defaultdict[str, Counter[str]] = defaultdict(Counter)

    def note(self, fault: str, column: str, *, wrong: bool = False) -> None:
        """Count one call."""
        self.rows[fault].update(["calls", column, *(["wrong"] if wrong else [])])

    def note_strikes(
        self, calls: Iterable[Call], strikes: Iterable[Strike], wrong: Mapping[str, str]
    ) -> None:
        """Lay each strike to the call whose attempt was under way on that connection then."""
        attempts = sorted(
            (attempt.backend_pid, attempt.started, number, call)
            for call in calls
            for number, attempt in enumerate(call.attempts)
        )
        places = [attempt[:2] for attempt in attempts]
        for strike in strikes:
            place = bisect_right(places, (strike.backend_pid, strike.at)) - 1
            pid, _, number, call = attempts[max(place, 0)]
            ends = [*(attempt.started for attempt in call.attempts[number + 1 :]), call.ended]
            if place >= 0 and pid == strike.backend_pid and strike.at <= ends[0]:
                self.note(strike.fault, fate(call, number), wrong=call.key in wrong)
            else:
                # The connection asked what became of a COMMIT, or was between two calls.
                self.rows[strike.fault]["none struck"] += 1

    def total(self) -> Counter[str]:
        """Return the sum of all rows."""
        return sum(self.rows.values(), Counter())

    def table(self, title: str) -> str:
        """Return it as text, a row for each fault."""
        columns = [*COLUMNS, *(["none struck"] if self.total()["none struck"] else [])]
        cells = [[title, *columns]]
        for fault, counts in [*sorted(self.rows.items()), ("total", self.total())]:
            cells.append([fault, *(str(counts[column]) for column in columns)])
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        return "\n".join(
            "  ".join(
                [name.ljust(widths[0])]
                + [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
            )
            for name, *others in cells
        )
