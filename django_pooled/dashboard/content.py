"""What the page's script gets to see of a look, in values that JSON can carry."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from django_pooled.poolstats import findings
from django_pooled.stats import BOUNDS

if TYPE_CHECKING:
    from django_pooled.poolstats.findings import Finding
    from django_pooled.poolstats.overview import Overview
    from django_pooled.stats import ProcessReport

    from .watch import Look

__all__ = ["content"]


def content(look: Look) -> dict[str, Any]:
    """Return what docs/dashboard.md describes.

    Args:
        look: What was found.
    """
    overview = look.overview
    found = findings.find(overview)
    status = findings.status(found)
    # Below a warning nothing is wrong, and what is worth knowing is no headline.
    notes = found[1:] if status else found
    return {
        "host": overview.host,
        "taken": look.taken,
        "status": status.name.lower(),
        "sentence": found[0].sentence if status else _all_is_well(overview),
        "notes": [_note(finding) for finding in notes],
        "bounds": list(BOUNDS),
        "processes": [_process(report) for report in overview.processes],
        "silent": overview.collection.silent,
        "servers": _servers(look),
    }


def _all_is_well(overview: Overview) -> str:
    totals = [group.totals for group in overview.groups]
    in_use, limit = (int(sum(total[key] for total in totals)) for key in ("in_use", "max_size"))
    many = len({row.pid for group in overview.groups for row in group.rows})
    processes = "1 process" if many == 1 else f"{many} processes"
    return f"All is well: {in_use} of {limit} connections in use in {processes}, nobody waits."


def _note(finding: Finding) -> dict[str, str]:
    return {"level": finding.level.name.lower(), "sentence": finding.sentence}


def _process(report: ProcessReport) -> dict[str, Any]:
    pools = [
        # One entry for each connection is what only a terminal has the room for.
        {key: value for key, value in pool.items() if key != "connections"}
        for pool in report["pools"]
    ]
    return {**report, "pools": pools}


def _servers(look: Look) -> list[dict[str, Any]]:
    """Describe each server once, however many databases are on it, and those not heard yet."""
    ages = {answer.view.alias: answer.age for answer in look.servers}
    known = [
        {"names": names, "age": ages[view.alias], "free": view.free, **asdict(view)}
        for names, view in look.overview.servers_by_address
    ]
    unknown = [
        {"names": f'"{answer.view.alias}"', "age": None}
        for answer in look.servers
        if answer.age is None
    ]
    return [*known, *unknown]
