"""What benchmarks of overload share: an engine with its options, a load, and how it is answered."""

from __future__ import annotations

import contextlib
import time
from statistics import quantiles
from typing import TYPE_CHECKING, Any, NamedTuple

from _common import Engine, requests, server, started

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from _common import Worker
    from _worker import Request

__all__ = ["IN_TIME", "THREADS", "Answers", "Contestant", "answers", "in_turn", "load"]

THREADS = 32
"""Those of each process, as a server has them."""

IN_TIME = 1.0
"""Seconds within which an answer is of use."""


class Contestant(NamedTuple):
    """An engine and its options of the pool."""

    name: str
    engine: str
    pool: Mapping[str, Any]

    @property
    def column(self) -> Engine:
        return Engine(self.name, {"ENGINE": self.engine})


class Answers(NamedTuple):
    """How the requests of one kind were answered."""

    p50: float | None
    p99: float | None
    in_time: float
    """Answers within a second, each second."""
    refused: float
    """Requests that were refused, each second."""
    refused_p50: float | None


def answers(seen: Sequence[Request], seconds: float) -> Answers:
    """Sum up the requests of some seconds."""
    served = [request.took for request in seen if request.error is None]
    refused = [request.took for request in seen if request.error is not None]
    return Answers(
        _quantile(served, 50),
        _quantile(served, 99),
        sum(took <= IN_TIME for took in served) / seconds,
        len(refused) / seconds,
        _quantile(refused, 50),
    )


def _quantile(values: Sequence[float], percent: int) -> float | None:
    if len(values) < 2:
        return values[0] if values else None
    return quantiles(values, n=100, method="inclusive")[percent - 1]


@contextlib.contextmanager
def in_turn(contestants: Sequence[Contestant], connections: int) -> Iterator[list[Worker]]:
    """Start a process for each, all on one server, with that many connections open."""
    sizes = {"min_size": connections, "max_size": connections, "timeout": 5.0}
    with server() as one:
        database = one.django_settings()
        with started(
            (each.column, {**database, "OPTIONS": {"pool": {**sizes, **each.pool}}})
            for each in contestants
        ) as workers:
            for each, worker in zip(contestants, workers, strict=True):
                lanes = each.pool.get("lanes", {})
                worker.hold(connections - sum(lane.get("reserved", 0) for lane in lanes.values()))
            yield workers


def load(
    worker: Worker, arrivals: Sequence[Mapping[str, Any]], seconds: float
) -> list[list[Request]]:
    """Have requests arrive for some seconds; return those of each kind that a thread took up."""
    worker.call("arrive", threads=THREADS, arrivals=arrivals)
    time.sleep(seconds)
    seen = requests(worker.call("finish"))
    return [[one for one in seen if one.thread == number] for number in range(len(arrivals))]
