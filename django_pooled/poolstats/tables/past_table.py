"""The last minutes of the pools as text: incidents, and a line for each minute or less."""

from __future__ import annotations

import textwrap
from datetime import datetime
from typing import TYPE_CHECKING

from django_pooled.poolstats.formatting import count, cut, duration, labelled, many
from django_pooled.stats.combine import total
from django_pooled.stats.history import INTERVAL

from .details import held_longest

if TYPE_CHECKING:
    from collections.abc import Callable

    from django_pooled.poolstats.findings.finding import Level
    from django_pooled.poolstats.past import Incident, Past, Span

__all__ = ["lines"]

MOST_LINES = 15
"""Of one database."""

_HEADINGS = ("from", "in use", "waiting", "longest", "checkouts", "failed", "wait p99", "restarts")
_WIDTHS = (8, 9, 7, 7, 9, 6, 8, 8)


def lines(past: Past, width: int, paint: Callable[[Level, str], str]) -> list[str]:
    """Lay it out."""
    seconds = past.until - past.since
    found = [_heading(past, seconds), ""]
    if not past.moments:
        found.append(
            "Nothing is remembered: no process of the site answered with a history, or all have "
            "just begun."
        )
        return [line for text in found for line in textwrap.wrap(text, width) or [""]]
    for incident in past.incidents:
        found += _incident(incident, width, paint)
    if not past.incidents:
        found.append("Nothing was wrong with the pools.")
    step = INTERVAL * max(1, -(-seconds // (MOST_LINES * INTERVAL)))
    for name, spans in past.spans(step).items():
        found += ["", cut(f'"{name}" in steps of {duration(step)}', width)]
        found.append(_laid_out(_HEADINGS))
        found += [_laid_out(_cells(span)) for span in spans]
        if text := held_longest(total(span.counters for span in spans).held):
            found += labelled("held longest", text, width)
    return found


def _heading(past: Past, seconds: float) -> str:
    who = many(len(past.overview.processes), "process", "processes")
    text = f"{past.overview.host}  the last {duration(seconds)} of {who}"
    if past.begin > past.since + INTERVAL and past.moments:
        text += f", known from {_clock(past.begin)} on"
    return text


def _incident(incident: Incident, width: int, paint: Callable[[Level, str], str]) -> list[str]:
    level = incident.finding.level
    end = "now" if incident.goes_on else _clock(incident.end)
    lasted = "" if incident.goes_on else f", {duration(incident.end - incident.begin)}"
    word = level.name.lower()
    first = f"{paint(level, word)}{' ' * (10 - len(word))}{_clock(incident.begin)} to {end}{lasted}"
    room = max(20, width - 10)
    return [first, *(" " * 10 + line for line in textwrap.wrap(incident.finding.told, room))]


def _cells(span: Span) -> tuple[str, ...]:
    counters = span.counters
    return (
        _clock(span.time),
        f"{count(span.in_use, 10_000)}/{count(span.max_size, 10_000)}",
        count(span.waiting),
        duration(span.longest_waiting),
        count(counters.checkouts),
        count(span.failed),
        duration(counters.wait.quantile(0.99)),
        count(counters.restarts.total()),
    )


def _laid_out(cells: tuple[str, ...]) -> str:
    return " ".join(f"{cell:>{room}}" for cell, room in zip(cells, _WIDTHS, strict=True))


def _clock(moment: float) -> str:
    return f"{datetime.fromtimestamp(moment).astimezone():%H:%M:%S}"
