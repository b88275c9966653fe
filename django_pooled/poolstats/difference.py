"""What happened between two looks at the same pools."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import TYPE_CHECKING

from django_pooled.stats.combine import combine
from django_pooled.stats.histogram import Histogram

if TYPE_CHECKING:
    from django_pooled.stats.snapshot import Counters, PoolSnapshot, ProcessReport

    from .overview import Overview

__all__ = ["since"]


def since(overview: Overview, previous: Overview) -> Overview:
    """Return an overview whose counters and times are those since an earlier look.

    Gauges are those of the later look. A pool that was opened in between has all of its own.
    """
    earlier = {
        _key(report, pool): pool.counters
        for report in previous.collection.reports
        for pool in report.pools
    }
    reports = []
    for report in overview.collection.reports:
        pools = [_changes(pool, earlier.get(_key(report, pool))) for pool in report.pools]
        reports.append(replace(report, pools=pools))
    collection = replace(overview.collection, reports=reports)
    return replace(overview, collection=collection, seconds=overview.taken - previous.taken)


def _key(report: ProcessReport, pool: PoolSnapshot) -> tuple[object, ...]:
    # No two pools have the same id, unless another user's process says so.
    return report.user, report.pid, pool.id


def _changes(pool: PoolSnapshot, before: Counters | None) -> PoolSnapshot:
    if before is None:
        return pool
    counters = combine(pool.counters, before, _less)
    for counter in fields(counters):
        times = getattr(counters, counter.name)
        if isinstance(times, Histogram):
            # The longest is known for the whole time only: of a part of it, the bucket's bound.
            times.longest = times.quantile(1.0) or 0.0
    return replace(pool, counters=counters)


def _less(now: float, then: float) -> float:
    # Less than nothing is what only a hostile process reports.
    return max(0, now - then)
