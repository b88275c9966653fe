"""An overview as text for a terminal of 100 columns."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from django_pooled.poolstats.findings.finding import Level
from django_pooled.poolstats.findings.overview_findings import status
from django_pooled.poolstats.formatting import many

from . import connection_table, details, pool_table, server_table

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from django_pooled.poolstats.findings.finding import Finding
    from django_pooled.poolstats.overview import Overview

__all__ = ["WIDTH", "Layout", "heading", "render"]

WIDTH = 100


def _unpainted(level: Level, text: str) -> str:
    """Return a word as it is."""
    return text


@dataclass
class Layout:
    """Which parts of an overview are shown, and how."""

    width: int = WIDTH
    """Columns of the terminal."""
    processes: int | None = None
    """How many are shown for each database; None for all if they are few, else the busiest."""
    connections: bool = False
    """Whether connections are listed, in place of the details."""
    details: bool = True
    """Whether the details below the table are shown."""
    order: str = "waiting"
    """The order of processes: a key of ``pool_table.ORDERS``."""
    hint: str = "--processes shows all"
    """How to see more processes."""
    paint: Callable[[Level, str], str] = _unpainted
    """Colours the word that says how bad a finding is."""


def heading(
    overview: Overview, found: Sequence[Finding], paint: Callable[[Level, str], str]
) -> str:
    """Return the first line: host, time, processes, and the verdict."""
    collection = overview.collection
    answered = f"{many(len(overview.processes), 'process', 'processes')} answered"
    silent = f", {len(collection.silent)} silent" if collection.silent else ""
    moment = f"{datetime.now().astimezone():%H:%M:%S}"
    level = status(list(found))
    trouble = next((it.trouble for it in found if it.level is level and it.trouble), "")
    verdict = level.name.lower()
    where = f", look at the {trouble}" if level and trouble else ""
    return f"{overview.host} {moment}  {answered}{silent}: {paint(level, verdict)}{where}"


def render(
    overview: Overview,
    found: Sequence[Finding],
    layout: Layout | None = None,
    *,
    recent: Overview | None = None,
) -> list[str]:
    """Lay an overview out in lines: the findings, the pools, and the servers.

    Args:
        recent: The same look, with the counts since the last one only: the table is of these.
    """
    layout = layout or Layout()
    blocks = [_findings(found, layout)]
    if overview.groups:
        table = pool_table.lines(
            recent or overview,
            processes=layout.processes,
            order=layout.order,
            width=layout.width,
            hint=layout.hint,
        )
        silent = [f"  {pid} does not answer" for pid in overview.collection.silent[:3]]
        blocks.append(table + silent)
        if layout.connections:
            blocks.append(connection_table.lines(overview, layout.width))
        elif layout.details:
            blocks.append(details.lines(overview, min(layout.width, WIDTH)))
    blocks.append(server_table.lines(overview, min(layout.width, WIDTH)))
    found_lines: list[str] = []
    for block in blocks:
        if block and found_lines:
            found_lines.append("")
        found_lines += block
    return found_lines


def _findings(found: Sequence[Finding], layout: Layout) -> list[str]:
    lines = []
    for finding in found:
        word = "note" if finding.level is Level.FINE else finding.level.name.lower()
        first, *rest = textwrap.wrap(finding.sentence, max(20, min(layout.width, WIDTH)) - 10) or [
            ""
        ]
        lines.append(f"{layout.paint(finding.level, word)}{' ' * (10 - len(word))}{first}")
        lines += [" " * 10 + line for line in rest]
    return lines
