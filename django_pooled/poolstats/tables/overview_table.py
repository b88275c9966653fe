"""An overview as text for a terminal of 100 columns."""

from __future__ import annotations

import getpass
import os
import textwrap
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from django_pooled.poolstats.findings.finding import Level
from django_pooled.poolstats.findings.overview_findings import status
from django_pooled.poolstats.formatting import many

from . import connection_table, details, pool_table, server_table

if TYPE_CHECKING:
    from collections.abc import Callable

    from django_pooled.poolstats.findings.finding import Finding
    from django_pooled.poolstats.overview import Overview

__all__ = ["NOTHING", "WIDTH", "Layout", "as_table"]

WIDTH = 100

NOTHING = """\
No process with an open pool was found.

A process can be seen from its first use of the database on, if its DATABASES entry has
ENGINE = "django_pooled". Start the site and make one request that reads from the database.

If it runs already:
  - under another user: run this command as that user, or as root (now: user {user});
  - in another container: run it there;
  - with OPTIONS["pool"]["stats_dir"]: False turns publishing off, a folder has to be the same
    here (--stats-dir);
  - with another SECRET_KEY or another database: run it with the settings of the site (--all shows
    the processes of all sites of this user).
Looked in: {folders}
"""


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
    """Colours the word for the level of a finding."""


def as_table(
    overview: Overview,
    found: list[Finding],
    layout: Layout | None = None,
    *,
    recent: Overview | None = None,
) -> list[str]:
    """Lay an overview out in lines: the verdict, the findings, the pools, and the servers.

    Where there is nothing to show, the lines tell what to do.

    Args:
        recent: The same look, with the counts since the last one only: the table is of these.
    """
    layout = layout or Layout()
    collection = overview.collection
    blocks = [[_heading(overview, found, layout.paint)]]
    if collection.askable and not overview.groups and not collection.silent:
        folders = ", ".join(collection.folders) or "no folder"
        blocks.append(NOTHING.format(user=_user(), folders=folders).splitlines())
        found = [finding for finding in found if finding.level is not Level.UNKNOWN]
    blocks.append(_findings(found, layout))
    narrow = min(layout.width, WIDTH)
    if overview.groups:
        table = pool_table.lines(
            recent or overview,
            processes=layout.processes,
            order=layout.order,
            width=layout.width,
            hint=layout.hint,
        )
        blocks.append(table + [f"  {pid} does not answer" for pid in collection.silent[:3]])
        if layout.connections:
            blocks.append(connection_table.lines(overview, layout.width))
        elif layout.details:
            blocks.append(details.lines(overview, narrow))
    blocks.append(server_table.lines(overview, narrow))
    lines: list[str] = []
    for block in blocks:
        lines += [*([""] if lines and block else []), *block]
    return lines


def _heading(overview: Overview, found: list[Finding], paint: Callable[[Level, str], str]) -> str:
    """Return the first line: host, time, processes, and the verdict."""
    collection = overview.collection
    answered = f"{many(len(overview.processes), 'process', 'processes')} answered"
    silent = f", {len(collection.silent)} silent" if collection.silent else ""
    moment = f"{datetime.now().astimezone():%H:%M:%S}"
    level = status(found)
    trouble = next((it.trouble for it in found if it.level is level and it.trouble), "")
    verdict = level.name.lower()
    where = f", look at the {trouble}" if level and trouble else ""
    return f"{overview.host} {moment}  {answered}{silent}: {paint(level, verdict)}{where}"


def _findings(found: list[Finding], layout: Layout) -> list[str]:
    lines = []
    for finding in found:
        word = "note" if finding.level is Level.FINE else finding.level.name.lower()
        width = max(20, min(layout.width, WIDTH)) - 10
        # A code can be searched for if it stands on one line.
        first, *rest = textwrap.wrap(finding.told, width, break_on_hyphens=False) or [""]
        lines.append(f"{layout.paint(finding.level, word)}{' ' * (10 - len(word))}{first}")
        lines += [" " * 10 + line for line in rest]
    return lines


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        # A container's user often has a number only; the error differs between Pythons.
        return str(os.geteuid())
