"""The findings of an overview: sentences for an operator, and a status for a probe."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

from django_pooled.poolstats.formatting import many

from .finding import Finding, Level
from .pool_findings import of_group
from .server_findings import of_server

if TYPE_CHECKING:
    from django_pooled.poolstats.overview import Overview

__all__ = ["find", "status", "worst_first"]

CAUSES = ("away", "paused", "pooler full", "read only")
"""Kinds of findings that explain the waiters and failures that come with them."""

MOST = 20
"""Sentences about the pools of one user, where there are several."""


def find(overview: Overview, recent: Overview | None = None) -> list[Finding]:
    """Return what is wrong or worth a note, the worst first.

    Args:
        recent: The same look, with the counts of the last seconds only; without it, they are
            those since the pools were opened.
    """
    found = _of_groups(recent or overview)
    for names, server in overview.servers_by_address:
        found += of_server(overview, names, server)
    if pids := overview.collection.silent:
        who = f"Process {pids[0]} does" if len(pids) == 1 else f"Processes {_list(pids)} do"
        sentence = f"{who} not answer: stopped, or too busy."
        found.append(Finding(Level.WARNING, sentence, "silent", "application"))
    found += [
        Finding(Level.WARNING, problem, "problem") for problem in overview.collection.problems
    ]
    if others := overview.collection.others:
        number = many(len(others), "process", "processes")
        sentence = f"{number} of other sites or of tests left out: --all shows them."
        found.append(Finding(Level.FINE, sentence, "others"))
    if not overview.groups:
        whose = f' of "{overview.alias}"' if overview.alias else ""
        sentence = f"No process that could be reached has an open pool{whose}."
        found.append(Finding(Level.UNKNOWN, sentence, "nothing"))
    return worst_first(found)


def _of_groups(overview: Overview) -> list[Finding]:
    """Return the findings of the pools, cut for each user so that those of others are read."""
    found: list[Finding] = []
    for user, groups in groupby(overview.groups, key=lambda group: group.user):
        told = worst_first([it for group in groups for it in of_group(overview, group)])
        most = len(told) if user is None else MOST
        found += told[:most]
        if rest := told[most:]:
            sentence = f"{many(len(rest), 'more sentence')} about pools of user {user} left out."
            found.append(Finding(rest[0].level, sentence, "more"))
    return found


def worst_first(found: list[Finding]) -> list[Finding]:
    """Sort findings by their levels, and causes before what follows from them."""
    order = (Level.CRITICAL, Level.UNKNOWN, Level.WARNING, Level.FINE)
    return sorted(
        found, key=lambda finding: (order.index(finding.level), finding.kind not in CAUSES)
    )


def status(findings: list[Finding]) -> Level:
    """Return the level of the worst finding; critical outweighs unknown."""
    return findings[0].level if findings else Level.FINE


def _list(pids: list[int]) -> str:
    shown = ", ".join(map(str, pids[:5]))
    return f"{shown} and {many(len(pids) - 5, 'more', 'more')}" if len(pids) > 5 else shown
