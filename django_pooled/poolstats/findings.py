"""What an overview means: sentences for an operator, and a status for a probe."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .finding import Finding, Level
from .pool_findings import of_group
from .server_findings import of_server
from .words import many

if TYPE_CHECKING:
    from .overview import Overview

__all__ = ["Finding", "Level", "find", "status", "worst_first"]


def find(overview: Overview, recent: Overview | None = None) -> list[Finding]:
    """Say in sentences what is wrong or worth knowing, the worst first.

    Args:
        recent: The same look, with what happened in the last seconds only; without it, what
            happens often is told from what was counted since the pools were opened.
    """
    groups = (recent or overview).groups
    found = [finding for group in groups for finding in of_group(recent or overview, group)]
    for names, server in overview.servers_by_address:
        found += of_server(overview, names, server)
    if pids := overview.collection.silent:
        who = f"Process {pids[0]} does" if len(pids) == 1 else f"Processes {_list(pids)} do"
        sentence = f"{who} not answer: stopped, or too busy."
        found.append(Finding(Level.WARNING, sentence, "silent", "application"))
    found += [
        Finding(Level.WARNING, problem, "problem") for problem in overview.collection.problems
    ]
    if not overview.groups:
        whose = f' of "{overview.alias}"' if overview.alias else ""
        sentence = f"No process that could be reached has an open pool{whose}."
        found.append(Finding(Level.UNKNOWN, sentence, "nothing"))
    return worst_first(found)


def worst_first(found: list[Finding]) -> list[Finding]:
    """Return them in the order of an operator's interest."""
    order = (Level.CRITICAL, Level.UNKNOWN, Level.WARNING, Level.FINE)
    return sorted(found, key=lambda finding: order.index(finding.level))


def status(findings: list[Finding]) -> Level:
    """Return the level of the worst; what is known to be critical outweighs the unknown."""
    return findings[0].level if findings else Level.FINE


def _list(pids: list[int]) -> str:
    shown = ", ".join(map(str, pids[:5]))
    return f"{shown} and {many(len(pids) - 5, 'more', 'more')}" if len(pids) > 5 else shown
