"""What happened between two looks at the same pools."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from django_pooled.stats.snapshot import nested

from .rows import COUNTED, COUNTED_BY_KIND, TIMES, PoolRow

if TYPE_CHECKING:
    from django_pooled.stats.histogram import Histogram
    from django_pooled.stats.snapshot import ProcessReport

    from .overview import Overview

__all__ = ["since"]


def since(overview: Overview, previous: Overview) -> Overview:
    """Return an overview whose counters and times are those since an earlier look.

    Gauges are those of the later look. What was opened in between, or opened anew, is counted
    from its beginning.
    """
    seconds = overview.taken - previous.taken
    earlier = _pools(previous)
    reports: list[Any] = []
    for report in overview.collection.reports:
        seen: Counter[tuple[object, ...]] = Counter()
        pools = []
        for pool in report["pools"]:
            key = _key(report, pool)
            before = earlier[key][seen[key]] if seen[key] < len(earlier[key]) else None
            seen[key] += 1
            pools.append(pool if before is None else _changes(pool, before, seconds))
        reports.append({**report, "pools": pools})
    collection = replace(overview.collection, reports=reports)
    return replace(overview, collection=collection, seconds=seconds)


def _pools(overview: Overview) -> dict[tuple[object, ...], list[dict[str, Any]]]:
    # A process may have two pools of one alias while its settings change: told apart by order.
    found: dict[tuple[object, ...], list[dict[str, Any]]] = defaultdict(list)
    for report in overview.collection.reports:
        for pool in report["pools"]:
            found[_key(report, pool)].append(pool)
    return found


def _key(report: ProcessReport, pool: dict[str, Any]) -> tuple[object, ...]:
    """Tell a pool from others: by its identity, or by what an older process reports."""
    if isinstance(pool.get("id"), str) and pool["id"]:
        return (pool["id"],)
    return report["pid"], pool["alias"], pool.get("server")


def _changes(pool: dict[str, Any], before: dict[str, Any], seconds: float) -> dict[str, Any]:
    now, then = PoolRow.of(pool), PoolRow.of(before)
    began_anew = any(now.number(key) < then.number(key) for key in (*COUNTED, "age"))
    if began_anew or (now.has("age") and now.number("age") < seconds):
        return pool
    changed = dict(pool)
    for key in COUNTED:
        if now.has(key):
            changed[key] = now.number(key) - then.number(key)
    for key in COUNTED_BY_KIND:
        changed[key] = _less(now.counts(key), then.counts(key))
    changed["restarted"] = nested(_less(now.outcomes, then.outcomes))
    for key in TIMES:
        if isinstance(pool.get(key), dict):
            changed[key] = _times(now.times(key), then.times(key))
    return changed


def _less(now: dict[Any, int], then: dict[Any, int]) -> dict[Any, int]:
    return {kind: count - then.get(kind, 0) for kind, count in now.items()}


def _times(now: Histogram, then: Histogram) -> dict[str, Any]:
    report = now.minus(then).as_report()
    # The longest is known for the whole time only: of a part of it, the bucket's bound.
    report["max"] = now.minus(then).quantile(1.0) or 0.0
    return report
