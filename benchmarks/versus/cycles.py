"""Requests without a web server: in one thread, far away, in many threads."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from .contestants import ALL, named
from .outcome import Metric, Outcome, interleaved
from .scale import CPU, DIRECT, MICRO, MILLI, P99, POOLS, RATE, WALL
from .venue import Venue, far_away

if TYPE_CHECKING:
    from collections.abc import Sequence

    from embedded_postgres import EmbeddedServer

    from .contestants import Contestant
    from .scale import Scale

__all__ = ["contention", "cycle", "cycle_tls", "far_2ms", "far_500us", "threads"]


def cycle(server: EmbeddedServer, scale: Scale) -> Outcome:
    """One thread: checkout, SELECT 1, checkin."""
    return _cycles(server, scale, "cycle", "One thread: checkout, SELECT 1, checkin", ALL)


def cycle_tls(server: EmbeddedServer, scale: Scale) -> Outcome:
    """The same over TLS, after SCRAM."""
    title = "One thread: checkout, SELECT 1, checkin; TLS and SCRAM"
    return _cycles(server, scale, "cycle_tls", title, DIRECT, tls=True)


def far_500us(server: EmbeddedServer, scale: Scale) -> Outcome:
    """The same with 0.5 ms of network each way."""
    return _far(server, scale, "far_500us", 0.0005)


def far_2ms(server: EmbeddedServer, scale: Scale) -> Outcome:
    """The same with 2 ms of network each way."""
    return _far(server, scale, "far_2ms", 0.002)


def _far(server: EmbeddedServer, scale: Scale, name: str, delay: float) -> Outcome:
    scale = replace(scale, cycles=max(10, scale.cycles // 6), rounds=max(2, scale.rounds // 2))
    title = f"One thread: checkout, SELECT 1, checkin; {delay * MILLI:g} ms away each way"
    with far_away(server, delay) as proxy:
        outcome = _cycles(server, scale, name, title, DIRECT, proxy=proxy)
        if alone := outcome.figures.get("psycopg alone"):
            over = min(alone["p50"]) - 2 * delay
            outcome.notes.append(
                "The network is a proxy in a process of its own, written in Python. Beyond the "
                f"delay, a round trip of psycopg alone takes {over * MICRO:.0f} µs here, at least."
            )
    return outcome


def _cycles(
    server: EmbeddedServer,
    scale: Scale,
    name: str,
    title: str,
    among: Sequence[Contestant],
    *,
    tls: bool = False,
    proxy: Any = None,
) -> Outcome:
    settings = {
        "rounds": scale.rounds,
        "requests in a turn": f"{scale.cycles}, a tenth per request",
        "max_size": 10,
    }
    with Venue(server, tls=tls, size=10, proxy=proxy) as venue:
        workers = venue.workers(list(among))
        outcome = Outcome(name, title, [WALL, CPU, P99], settings, absent=venue.absent)
        outcome.notes.append(
            "A turn's wall is the median of its requests, its CPU the process's mean. A request "
            "begins and ends as Django's do, with the signals request_started and request_finished."
        )

        def turn(who: str) -> dict[str, float]:
            # A connect takes a hundred times as long as a query.
            fewer = 10 if who.startswith("per request") else 1
            found: dict[str, float] = workers[who].call("cycles", count=scale.cycles // fewer)
            return found

        interleaved(outcome, scale.rounds, list(workers), turn)
    return outcome


def contention(server: EmbeddedServer, scale: Scale) -> Outcome:
    """64 threads on 5 connections."""
    settings = {"threads": 64, "max_size": 5, "rounds": scale.long_rounds}
    with Venue(server, tls=False, size=5) as venue:
        workers = venue.workers(POOLS)
        outcome = Outcome(
            "contention",
            "64 threads on 5 connections",
            [RATE, CPU, Metric("p50", "p50, ms", MILLI, 1), Metric("p99", "p99, ms", MILLI, 1)],
            {**settings, "seconds of a turn": scale.seconds},
            absent=venue.absent,
        )
        interleaved(
            outcome,
            scale.long_rounds,
            list(workers),
            lambda who: workers[who].call("share", threads=64, seconds=scale.seconds),
        )
    return outcome


THREADS = (1, 4, 16, 64, 256)


def threads(server: EmbeddedServer, scale: Scale) -> Outcome:
    """What a request costs the client's processor, from 1 to 256 threads."""
    names = ("persistent", "native pool", "dj_db_conn_pool", "ours, session", "ours, transaction")
    settings = {"max_size": 5, "rounds": scale.long_rounds, "seconds of a turn": scale.seconds / 2}
    with Venue(server, tls=False, size=5) as venue:
        workers = venue.workers(named(names))
        metrics = [
            Metric(str(count), f"CPU, µs, {count} threads", MICRO, at=count) for count in THREADS
        ]
        outcome = Outcome(
            "threads",
            "CPU of the client for a request, by the number of threads, µs",
            metrics,
            settings,
            absent=venue.absent,
        )
        outcome.notes.append("Without a pool, each thread has a connection of its own.")

        def turn(who: str) -> dict[str, float]:
            return {
                str(count): workers[who].call("share", threads=count, seconds=scale.seconds / 2)[
                    "cpu"
                ]
                for count in THREADS
            }

        interleaved(outcome, scale.long_rounds, list(workers), turn)
    return outcome
