"""The figures that the page's script gets, in values that JSON can carry."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from django_pooled.poolstats.findings import overview_findings
from django_pooled.sql.sqlstates import named
from django_pooled.stats.snapshot import BOUNDS

if TYPE_CHECKING:
    from django_pooled.poolstats.findings.finding import Finding
    from django_pooled.poolstats.overview import Overview
    from django_pooled.poolstats.server.view import ServerView
    from django_pooled.stats.snapshot import ProcessReport

    from .watch import Snapshot

__all__ = ["content"]

MOST_HOLDERS = 10

_OF_A_SERVER = (
    *("error", "failure", "version", "standby", "max_connections", "reserved", "used", "free"),
    *("states", "blocked", "longest_idle_in_transaction", "waits_in_pooler", "seen_by"),
)
"""The figures of a server: counts, without single sessions."""


def content(snapshot: Snapshot) -> dict[str, Any]:
    """Return the content of a snapshot as docs/dashboard.md describes it.

    Args:
        snapshot: From `watch`.
    """
    overview = snapshot.overview
    found = [
        finding
        for finding in overview_findings.find(overview, snapshot.recent)
        # That there are other sites is no news of this one.
        if finding.kind != "others"
    ]
    status = overview_findings.status(found)
    # Below a warning nothing is wrong, and a note is no headline.
    notes = found[1:] if status else found
    return {
        "host": overview.host,
        "taken": snapshot.taken,
        "status": status.name.lower(),
        "sentence": found[0].sentence if status else _all_is_well(overview),
        "code": found[0].code if status else "",
        "notes": [_note(finding) for finding in notes],
        "bounds": list(BOUNDS),
        "failures": _failures(overview),
        "holders": _holders(overview),
        "processes": [_process(report) for report in overview.processes],
        "silent": overview.collection.silent,
        "servers": _servers(snapshot),
    }


def _all_is_well(overview: Overview) -> str:
    in_use = sum(group.sum("in_use") for group in overview.groups)
    limit = sum(group.sum("max_size") for group in overview.groups)
    many = len({row.process.pid for group in overview.groups for row in group.rows})
    processes = "1 process" if many == 1 else f"{many} processes"
    return f"All is well: {in_use} of {limit} connections in use in {processes}, nobody waits."


def _failures(overview: Overview) -> dict[str, str]:
    """Name the failures that transactions were restarted for."""
    kinds = {kind for group in overview.groups for kind in group.counters.restarts}
    return {kind: named(kind) for kind in sorted(kinds)}


def _holders(overview: Overview) -> list[dict[str, Any]]:
    """Describe those that held connections for the longest time in all, and what they hold now."""
    found: dict[str, dict[str, Any]] = {}

    def holder(name: str) -> dict[str, Any]:
        new = {"name": name, "seconds": 0.0, "in_use": 0, "longest": None, "statements": {}}
        return found.setdefault(name, new)

    for group in overview.groups:
        for name, seconds in group.counters.held.items():
            holder(name)["seconds"] += seconds
        for row in group.rows:
            for connection in row.pool.connections:
                # As `Checkouts.note_held` names them.
                where = (connection["where"] or "").rpartition(":")[0]
                if connection["state"] == "idle" or not (name := connection["by"] or where):
                    continue
                one = holder(name)
                one["in_use"] += 1
                one["longest"] = max(one["longest"] or 0.0, connection["since"])
                if statement := connection["statement"]:
                    one["statements"][statement] = one["statements"].get(statement, 0) + 1
    ranked = sorted(found.values(), key=lambda one: (-one["seconds"], -one["in_use"]))
    return ranked[:MOST_HOLDERS]


def _note(finding: Finding) -> dict[str, str]:
    level = finding.level.name.lower()
    return {"level": level, "sentence": finding.sentence, "code": finding.code}


def _process(report: ProcessReport) -> dict[str, Any]:
    values = report.as_json()
    for pool in values["pools"]:
        # The page has no room for each connection.
        del pool["connections"]
    return values


def _servers(snapshot: Snapshot) -> list[dict[str, Any]]:
    """Describe each server once, and the databases that have not answered yet."""
    ages = {answer.view.alias: answer.age for answer in snapshot.servers}
    known = [
        {"names": names, "age": ages[view.alias], "hosts": _hosts(view)}
        | {key: getattr(view, key) for key in _OF_A_SERVER}
        | {"queue": view.queue and asdict(view.queue)}
        for names, view in snapshot.overview.servers_by_address
    ]
    unknown = [
        {"names": f'"{answer.view.alias}"', "age": None}
        for answer in snapshot.servers
        if answer.age is None
    ]
    return [*known, *unknown]


def _hosts(view: ServerView) -> dict[str, dict[str, int]]:
    """Count processes and sessions by host."""
    return {
        host: {"processes": processes, "sessions": sessions}
        for host, (processes, sessions) in view.hosts.items()
    }
