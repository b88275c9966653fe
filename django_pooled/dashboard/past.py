"""The past of the pools as the page shows it: incidents, and columns for its charts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django_pooled.poolstats.rows import failed_checkouts
from django_pooled.stats.combine import total

if TYPE_CHECKING:
    from django_pooled.poolstats.overview import Overview
    from django_pooled.poolstats.past import Past

__all__ = ["columns", "content"]

MOST_POOLS = 24
"""Pools with charts of their own; the page draws no more."""


def content(past: Past) -> dict[str, Any]:
    """Return what docs/dashboard.md describes."""
    return {
        "host": past.overview.host,
        "begin": past.begin,
        "until": past.until,
        "incidents": [
            incident.as_json() | {"code": incident.finding.code}
            for incident in reversed(past.incidents)
        ],
        **columns(past),
    }


def columns(past: Past) -> dict[str, Any]:
    """Return the moments, and for each figure a list of its values; None where it has none."""
    rows = [_figures(moment.overview) for moment in past.moments]
    names = dict.fromkeys(name for row in rows for name in row)
    return {
        "times": [moment.time for moment in past.moments],
        "columns": {name: [row.get(name) for row in rows] for name in names},
    }


def _figures(overview: Overview) -> dict[str, float | None]:
    groups = overview.groups
    counters, seconds = total(group.counters for group in groups), overview.seconds or 1.0
    waits = [wait for group in groups if (wait := group.longest_waiting) is not None]
    figures: dict[str, float | None] = {
        gauge: sum(group.sum(gauge) for group in groups)
        for gauge in ("in_use", "idle", "waiting", "size", "max_size")
    }
    figures |= {
        "longest": max(waits, default=None),
        "checkouts": counters.checkouts / seconds,
        "failures": sum(failed_checkouts(counters).values()) / seconds,
        "restarts": counters.restarts.total() / seconds,
        **{f"p{share}": counters.wait.quantile(share / 100) for share in (50, 95, 99)},
    }
    rows = [row for group in groups for row in group.rows]
    if len(rows) <= MOST_POOLS:
        for row in rows:
            for gauge in ("in_use", "idle", "waiting", "max_size"):
                figures[f"{row.pool.id} {gauge}"] = getattr(row.pool, gauge)
    return figures
