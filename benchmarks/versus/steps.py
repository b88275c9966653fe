"""What each step of a request costs the client's processor, from libpq upwards."""

from __future__ import annotations

from typing import TYPE_CHECKING

from _common import Engine, Worker

from .contestants import NATIVE, OURS, OURS_TRANSACTION, PER_REQUEST
from .outcome import Metric, Outcome, interleaved
from .steps_worker import PARTS
from .venue import Venue

if TYPE_CHECKING:
    from embedded_postgres import EmbeddedServer

    from .scale import Scale

__all__ = ["parts", "steps"]


def steps(server: EmbeddedServer, scale: Scale) -> Outcome:
    """Each step by itself, repeated."""
    metrics = [_metric("cpu", "CPU of the client, µs"), _metric("wall", "wall, µs")]
    return _taken(server, scale, "steps", "Steps of a request, each repeated", metrics, "names")


def parts(server: EmbeddedServer, scale: Scale) -> Outcome:
    """The parts of whole requests."""
    metrics = [_metric("sum", "CPU in all, µs"), *(_metric(part, part) for part in PARTS)]
    return _taken(server, scale, "parts", "Where the time of a request goes", metrics, "engines")


def _metric(key: str, title: str) -> Metric:
    return Metric(key, title, 1e6, 1)


def _taken(
    server: EmbeddedServer, scale: Scale, name: str, title: str, metrics: list[Metric], rows: str
) -> Outcome:
    settings = {"rounds": scale.rounds, "repetitions in a turn": scale.cycles}
    outcome = Outcome(name, title, metrics, settings)
    with Venue(server, tls=False, size=10) as venue:
        entry = venue.entry(OURS)
        others = {
            "persistent": {**venue.entry(PER_REQUEST), "CONN_MAX_AGE": None},
            "native": venue.entry(NATIVE),
            "transaction": venue.entry(OURS_TRANSACTION),
        }
        worker = Worker(Engine("steps"), {**entry, "OTHERS": others}, "versus.steps_worker")
        venue.on_exit(worker.close)
        interleaved(
            outcome,
            scale.rounds,
            worker.call(rows),
            lambda row: worker.call(f"take_{rows}", name=row, count=scale.cycles),
        )
    return outcome
