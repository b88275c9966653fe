"""The pools' metrics for OpenTelemetry, under the names of its semantic conventions."""

# https://opentelemetry.io/docs/specs/semconv/database/database-metrics/#connection-pools

from __future__ import annotations

import os
import threading
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from opentelemetry.metrics import CallbackOptions, Observation, get_meter

import django_pooled
from django_pooled.pool import registry
from django_pooled.poolstats.rows import PoolRow
from django_pooled.signals import (
    connection_checked_in,
    connection_checked_out,
    connection_opened,
)
from django_pooled.stats.snapshot import BOUNDS, process_report

from .site import SitePools
from .sums import Sums

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from django.dispatch import Signal
    from opentelemetry.metrics import Histogram, Meter, MeterProvider

    from django_pooled.stats.snapshot import PoolSnapshot

    Gauge = Callable[[PoolSnapshot], Iterable[tuple[dict[str, str], int]]]

__all__ = ["instrument", "uninstrument"]

POOL_NAME = "db.client.connection.pool.name"
STATE = "db.client.connection.state"

# The conventions give none for these; those of the SDK are meant for milliseconds.
BOUNDARIES = BOUNDS[::2]

_current: _Instrumentation | None = None


def instrument(meter_provider: MeterProvider | None = None) -> None:
    """Report the pools of this process, including those that are opened later.

    A pool goes by its option ``name``, or by its alias. May be called in the settings, before a
    fork, and more than once: while it reports, another call changes nothing.

    Args:
        meter_provider: None for OpenTelemetry's global one.
    """
    global _current
    if _current is None:
        _current = _Instrumentation(
            get_meter("django_pooled", django_pooled.__version__, meter_provider)
        )


def uninstrument() -> None:
    """Report no more; `instrument` may be called again."""
    global _current
    if _current is not None:
        _current.end()
        _current = None


class _Instrumentation:
    """The instruments of `instrument`, until `uninstrument`.

    Durations are recorded by signals as they come; the other figures are observed when a reader
    asks for them.
    """

    def __init__(self, meter: Meter) -> None:
        self._ended = False
        self._sums: dict[int, tuple[threading.Lock, Sums]] = {}
        """By process, since a parent reports its own counts. The lock guards the sums: each reader
        asks in a thread of its own. Only ever added to, by setdefault(), which none divides."""
        self._receivers: list[tuple[Signal, Callable[..., None]]] = []
        for name, text, unit, gauge in _GAUGES:
            meter.create_observable_up_down_counter(name, [self._observer(gauge)], unit, text)
        meter.create_observable_counter(
            "db.client.connection.timeouts",
            [self._timeouts],
            "{timeout}",
            "Checkouts that timed out.",
        )
        for name, text, signal, argument in _TIMES:
            histogram = meter.create_histogram(
                name, "s", text, explicit_bucket_boundaries_advisory=BOUNDARIES
            )
            receiver = _recorder(histogram, argument)
            signal.connect(receiver, weak=False)
            self._receivers.append((signal, receiver))

    def end(self) -> None:
        # A meter has no way to remove an observer.
        self._ended = True
        for signal, receiver in self._receivers:
            signal.disconnect(receiver)

    def _observer(self, gauge: Gauge) -> Callable[[CallbackOptions], Iterator[Observation]]:
        def observe(options: CallbackOptions) -> Iterator[Observation]:
            # While settings change there may be two pools of one name: they are reported as one.
            sums: Counter[tuple[tuple[str, str], ...]] = Counter()
            for pool in [] if self._ended else registry.snapshots():
                for attributes, number in gauge(pool):
                    sums[tuple({POOL_NAME: pool.name, **attributes}.items())] += number
            for key, number in sums.items():
                yield Observation(number, dict(key))

        return observe

    def _timeouts(self, options: CallbackOptions) -> Iterator[Observation]:
        if self._ended:
            return
        lock, kept = self._sums.setdefault(os.getpid(), (threading.Lock(), Sums()))
        report = process_report(registry.snapshots())
        pools = [PoolRow(report, replace(pool, alias=pool.name)) for pool in report.pools]
        seen = SitePools(pools, {(report.host, report.pid)})
        sums: Counter[str] = Counter()
        with lock:
            kept.update(seen)
            for name, _, counters in kept.figures(seen):
                sums[name] += counters.timeouts
        for name, number in sums.items():
            yield Observation(number, {POOL_NAME: name})


def _recorder(histogram: Histogram, argument: str) -> Callable[..., None]:
    def receive(pool_name: str, **facts: Any) -> None:
        histogram.record(facts[argument], {POOL_NAME: pool_name})

    return receive


# Names, units and kinds are the conventions'.
_GAUGES: tuple[tuple[str, str, str, Gauge], ...] = (
    (
        "db.client.connection.count",
        "Connections by state.",
        "{connection}",
        lambda pool: [({STATE: "idle"}, pool.idle), ({STATE: "used"}, pool.in_use)],
    ),
    (
        "db.client.connection.idle.max",
        "Most connections that may be idle.",
        "{connection}",
        lambda pool: [({}, pool.max_size)],
    ),
    (
        "db.client.connection.idle.min",
        "Connections kept open even when idle.",
        "{connection}",
        lambda pool: [({}, pool.min_size)],
    ),
    (
        "db.client.connection.max",
        "Most connections that the pool opens.",
        "{connection}",
        lambda pool: [({}, pool.max_size)],
    ),
    (
        "db.client.connection.pending_requests",
        "Threads queued for a checkout.",
        "{request}",
        lambda pool: [({}, pool.waiting)],
    ),
)

_TIMES: tuple[tuple[str, str, Signal, str], ...] = (
    (
        "db.client.connection.create_time",
        "Time of each successful connect.",
        connection_opened,
        "seconds",
    ),
    (
        "db.client.connection.wait_time",
        "Time of each successful checkout.",
        connection_checked_out,
        "waited",
    ),
    (
        "db.client.connection.use_time",
        "Time that each connection given back was in use.",
        connection_checked_in,
        "used",
    ),
)
