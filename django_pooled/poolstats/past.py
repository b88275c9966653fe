"""The last minutes of the pools: incidents with their begin and end, and figures over time."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from itertools import groupby
from time import time
from typing import TYPE_CHECKING, Any, NamedTuple

from django_pooled.poolstats.findings.finding import Level
from django_pooled.poolstats.findings.overview_findings import find
from django_pooled.poolstats.processes.collect import Collection
from django_pooled.stats.combine import total
from django_pooled.stats.history import INTERVAL

from .overview import Overview

if TYPE_CHECKING:
    from collections.abc import Iterator

    from django_pooled.poolstats.findings.finding import Finding
    from django_pooled.stats.snapshot import Counters, ProcessReport

    from .rows import Group

__all__ = ["Incident", "Moment", "Past", "Span"]

_NOT_OF_POOLS = ("nothing", "others", "problem", "silent")
_QUOTED = re.compile('"[^"]*"')


class Moment(NamedTuple):
    """An interval of all processes: gauges of the worst moment in each, counters of all of it."""

    time: float
    """Seconds since the epoch."""
    overview: Overview


@dataclass
class Incident:
    """The same finding over some time, as it was when it was worst."""

    finding: Finding
    begin: float
    """Seconds since the epoch."""
    end: float
    goes_on: bool = False
    weight: float = 0.0
    """What requests had waited and failed, when it was worst."""

    def as_json(self) -> dict[str, Any]:
        """Return it in plain values."""
        end = None if self.goes_on else self.end
        return self.finding.as_json() | {"begin": self.begin, "end": end}


@dataclass
class Span:
    """What the pools of one database did in some time."""

    time: float
    """Its beginning, in seconds since the epoch."""
    seconds: float
    groups: list[Group]

    @property
    def counters(self) -> Counters:
        """What was counted."""
        return total(group.counters for group in self.groups)

    @property
    def in_use(self) -> int:
        """The most connections in use, added up over processes."""
        return max(group.sum("in_use") for group in self.groups)

    @property
    def max_size(self) -> int:
        """The most that they could have."""
        return max(group.sum("max_size") for group in self.groups)

    @property
    def waiting(self) -> int:
        """The most waiters, added up over processes."""
        return max(group.sum("waiting") for group in self.groups)

    @property
    def longest_waiting(self) -> float | None:
        """The longest that one had waited, in seconds."""
        waits = (group.longest_waiting for group in self.groups)
        return max((wait for wait in waits if wait is not None), default=None)

    @property
    def failed(self) -> int:
        """Checkouts that ended without a connection."""
        return sum(group.failed for group in self.groups)

    def as_json(self) -> dict[str, Any]:
        """Return it in plain values."""
        counters = self.counters
        return {
            "time": self.time,
            "seconds": self.seconds,
            "in_use": self.in_use,
            "max_size": self.max_size,
            "waiting": self.waiting,
            "longest_waiting": self.longest_waiting,
            "checkouts": counters.checkouts,
            "failed": self.failed,
            "connect_failures": counters.connect_failures,
            "restarts": dict(counters.restarts),
            "wait_p99": counters.wait.quantile(0.99),
            "held": counters.held,
        }


class Past:
    """What the processes of an overview remember.

    A process remembers at most a quarter of an hour, and nothing from before it began; one that has
    ended is not heard.

    Args:
        overview: Whose reports have their history.
        seconds: How far back to look.
    """

    def __init__(self, overview: Overview, seconds: float) -> None:
        self.overview = overview
        self.until = time()
        self.since = self.until - seconds
        self.moments = list(_moments(overview, self.since))
        self.begin = min(
            (past.time for report in overview.processes for past in report.history),
            default=self.until,
        )
        """The beginning of what is remembered, in seconds since the epoch."""
        self.incidents = _incidents(self.moments)

    def spans(self, seconds: float) -> dict[str, list[Span]]:
        """Return what each database's pools did, by name and in time, in steps of some seconds."""
        found: dict[str, list[Span]] = {}
        for step, moments in groupby(self.moments, key=lambda moment: moment.time // seconds):
            groups: dict[str, list[Group]] = {}
            for moment in moments:
                for group in moment.overview.groups:
                    groups.setdefault(group.name, []).append(group)
            for name, ours in groups.items():
                found.setdefault(name, []).append(Span(step * seconds, seconds, ours))
        return found

    def as_json(self) -> dict[str, Any]:
        """Return everything in plain values."""
        return {
            "host": self.overview.host,
            "since": self.since,
            "begin": self.begin,
            "until": self.until,
            "processes": len(self.overview.processes),
            "incidents": [incident.as_json() for incident in self.incidents],
            "databases": {
                name: [span.as_json() for span in spans]
                for name, spans in self.spans(INTERVAL).items()
            },
        }


def _moments(overview: Overview, since: float) -> Iterator[Moment]:
    found: dict[float, list[ProcessReport]] = {}
    seconds: dict[float, float] = {}
    for report in overview.processes:
        for past in report.history:
            if past.time >= since:
                begin = past.time // INTERVAL * INTERVAL
                # The one under way is shorter.
                seconds[begin] = max(seconds.get(begin, 0.0), past.seconds)
                found.setdefault(begin, []).append(replace(report, pools=past.pools, history=[]))
    for begin, reports in sorted(found.items()):
        look = Overview(
            Collection(reports),
            [],
            overview.alias,
            overview.host,
            seconds=seconds[begin] or INTERVAL,
            site=overview.site,
            user=overview.user,
        )
        yield Moment(begin, look)


def _incidents(moments: list[Moment]) -> list[Incident]:
    """Join findings of the same kind about the same database that follow each other."""
    found: list[Incident] = []
    latest: dict[tuple[str, str], Incident] = {}
    for moment in moments:
        end = moment.time + INTERVAL
        weight = sum(_weight(group) for group in moment.overview.groups)
        for finding in find(moment.overview, moment.overview):
            if finding.level is Level.FINE or finding.kind in _NOT_OF_POOLS:
                continue
            subject = _QUOTED.search(finding.sentence)
            key = finding.kind or "", subject[0] if subject else ""
            incident = latest.get(key)
            # Over a quiet interval it is still the same.
            if incident is None or moment.time - incident.end > INTERVAL:
                incident = latest[key] = Incident(finding, moment.time, end, weight=weight)
                found.append(incident)
            incident.end = end
            if (finding.level, weight) > (incident.finding.level, incident.weight):
                incident.finding, incident.weight = finding, weight
    for incident in found:
        incident.goes_on = incident.end >= moments[-1].time + INTERVAL
    return found


def _weight(group: Group) -> float:
    """Return how bad it is for requests, of two moments of one incident."""
    return group.sum("waiting") * (group.longest_waiting or 0.0) + group.failed
