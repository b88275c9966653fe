"""Pools and servers as metric families of prometheus_client, which writes Prometheus's formats."""

# https://prometheus.io/docs/instrumenting/exposition_formats/
# https://github.com/prometheus/OpenMetrics/blob/main/specification/OpenMetrics.md

from __future__ import annotations

from collections import Counter
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple

from django.core.exceptions import ImproperlyConfigured

from django_pooled.diagnostics.redaction import printable
from django_pooled.stats.combine import total
from django_pooled.stats.histogram import BOUNDS

from .metric_definitions import (
    BY_KIND,
    COUNTERS,
    FINDING_LABELS,
    FINDINGS,
    GAUGES,
    SERVER_GAUGES,
    SERVER_LABELS,
    SERVER_SESSIONS,
    SILENT_PROCESSES,
    TIMES,
    pool_labels,
)

try:
    from prometheus_client import CollectorRegistry, generate_latest
    from prometheus_client.core import (
        CounterMetricFamily,
        GaugeMetricFamily,
        HistogramMetricFamily,
    )
    from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
except ModuleNotFoundError as error:
    raise ImproperlyConfigured(
        "Metrics for Prometheus need the package prometheus-client: "
        'pip install "django-pooled[prometheus]".'
    ) from error

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from prometheus_client import Metric

    from django_pooled.poolstats.server.view import ServerView
    from django_pooled.stats.snapshot import Counters, PoolSnapshot

    from .findings.finding import Finding
    from .overview import Overview

__all__ = ["Source", "as_openmetrics", "as_text", "of_overview", "of_pools", "single"]


class Source(NamedTuple):
    """What the samples of one set of labels are made of."""

    labels: Mapping[str, str]
    """Labels that not every source has come last."""
    pool: PoolSnapshot | None
    """None for a pool that has gone: its counters are all that is left."""
    counters: Counters


class _Merged(NamedTuple):
    """The sources that have the same labels."""

    labels: list[str]
    pools: list[PoolSnapshot]
    counters: Counters


def of_pools(sources: Iterable[Source], *, openmetrics: bool = False) -> list[Metric]:
    """Return the metrics of pools.

    Args:
        sources: Those with the same labels are added up: two pools of one alias while the settings
            of a process change, or all processes of a host.
        openmetrics: Whether the bounds of buckets are written as OpenMetrics wants them.
    """
    by_labels: dict[tuple[tuple[str, str], ...], list[Source]] = {}
    for source in sources:
        by_labels.setdefault(tuple(source.labels.items()), []).append(source)
    # add_metric() leaves out labels at the end for which it gets no values.
    names = max((tuple(name for name, _ in labels) for labels in by_labels), key=len, default=())
    merged = [
        _Merged(
            [_shown(value) for _, value in labels],
            [source.pool for source in found if source.pool is not None],
            total(source.counters for source in found),
        )
        for labels, found in by_labels.items()
    ]
    return [
        *_gauges(names, merged),
        *_counters(names, merged),
        *_by_kind(names, merged),
        *_times(names, merged, openmetrics),
    ]


def _gauges(names: Sequence[str], merged: Iterable[_Merged]) -> Iterator[Metric]:
    for gauge in GAUGES:
        family = _family(GaugeMetricFamily, gauge.name, gauge.text, names)
        for one in merged:
            figures = [getattr(pool, gauge.key) for pool in one.pools]
            known = [gauge.none if figure is None else figure for figure in figures]
            if known := [figure for figure in known if figure is not None]:
                family.add_metric(one.labels, gauge.combine(known))
        yield family


def _counters(names: Sequence[str], merged: Iterable[_Merged]) -> Iterator[Metric]:
    for name, key, text in COUNTERS:
        family = _family(CounterMetricFamily, name, text, names)
        for one in merged:
            family.add_metric(one.labels, getattr(one.counters, key))
        yield family


def _by_kind(names: Sequence[str], merged: Iterable[_Merged]) -> Iterator[Metric]:
    for metric in BY_KIND:
        family = _family(CounterMetricFamily, metric.name, metric.text, (*metric.labels, *names))
        for one in merged:
            counts = {**dict.fromkeys(metric.always, 0), **getattr(one.counters, metric.key)}
            for kind, number in counts.items():
                kinds = kind if isinstance(kind, tuple) else (kind,)
                family.add_metric([*map(_shown, kinds), *one.labels], number)
        yield family


def _times(names: Sequence[str], merged: Iterable[_Merged], openmetrics: bool) -> Iterator[Metric]:
    bounds = [*(_bound(bound, openmetrics) for bound in BOUNDS), "+Inf"]
    for name, key, text in TIMES:
        family = _family(HistogramMetricFamily, name, text, names)
        for one in merged:
            times = getattr(one.counters, key)
            buckets = list(zip(bounds, accumulate(times.buckets), strict=True))
            family.add_metric(one.labels, buckets, times.total)
        yield family


def of_overview(overview: Overview, found: Iterable[Finding] = ()) -> list[Metric]:
    """Return the metrics of every process that answered, each by its pid, and of the servers.

    Args:
        found: The findings, which are counted.
    """
    sources = [
        Source(
            pool_labels(group.alias, server=group.server, pid=row.process.pid, user=group.user),
            row.pool,
            row.counters,
        )
        for group in overview.groups
        for row in group.rows
    ]
    silent = single(*SILENT_PROCESSES, len(overview.collection.silent))
    return [*of_pools(sources), silent, *_of_servers(overview), _of_findings(found)]


def _of_findings(found: Iterable[Finding]) -> Metric:
    family = _family(GaugeMetricFamily, *FINDINGS, FINDING_LABELS)
    counts = Counter(
        (finding.code, finding.level.name.lower())
        for finding in found
        # What else runs on the host is none of the site's.
        if finding.kind != "others"
    )
    for labels, number in counts.items():
        family.add_metric(labels, number)
    return family  # type: ignore[no-any-return]


def _of_servers(overview: Overview) -> Iterator[Metric]:
    answered = [server for server in overview.servers if server.error is None]
    for name, key, text in SERVER_GAUGES:
        family = _family(GaugeMetricFamily, name, text, SERVER_LABELS)
        for server in answered if key else overview.servers:
            value = getattr(server, key) if key else server.error is None
            family.add_metric(_server_labels(overview, server), value)
        yield family
    states = _family(
        GaugeMetricFamily, SERVER_SESSIONS.name, SERVER_SESSIONS.text, SERVER_SESSIONS.labels
    )
    for server in answered:
        for state, number in getattr(server, SERVER_SESSIONS.key).items():
            states.add_metric([*_server_labels(overview, server), _shown(state)], number)
    yield states


def _server_labels(overview: Overview, server: ServerView) -> list[str]:
    # By the settings: the address that answered is not known while none does.
    address = overview.site.server(server.alias) if overview.site else server.address
    return [_shown(server.alias), _shown(address)]


def single(name: str, text: str, value: float) -> Metric:
    """Return a metric of one figure, without labels.

    Args:
        name: Without the prefix.
        text: What it is.
        value: The figure.
    """
    return GaugeMetricFamily(f"django_pooled_{name}", text, value=value)


def as_text(families: Iterable[Metric]) -> str:
    """Write metrics in Prometheus's text format."""
    return generate_latest(_registry(families)).decode()


def as_openmetrics(families: Iterable[Metric]) -> str:
    """Write metrics in the format OpenMetrics 1.0.0."""
    text: bytes = generate_openmetrics(_registry(families))  # type: ignore[no-untyped-call]
    return text.decode()


def _family(kind: Any, name: str, text: str, labels: Sequence[str]) -> Any:
    return kind(f"django_pooled_{name}", text, labels=labels)


def _bound(bound: float, openmetrics: bool) -> str:
    # Without the noise of binary fractions, so that queries find it.
    text = f"{bound:g}"
    return f"{text}.0" if openmetrics and text.isdigit() else text


def _shown(label: str) -> str:
    # Any program may name its session. The formats have an escape for the end of a line alone, and
    # a terminal may show the rest.
    return "\n".join(map(printable, label.split("\n")))


def _registry(families: Iterable[Metric]) -> CollectorRegistry:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Families(families))
    return registry


class _Families:
    """Metrics as a collector."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = list(families)

    def collect(self) -> list[Metric]:
        return self._families
