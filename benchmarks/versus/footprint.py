"""What there is to pay before the first request and beside all others: time, memory, statistics."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import psycopg

from django_pooled.poolstats.processes.collect import collect

from .contestants import NATIVE, OURS, named
from .outcome import Metric, Outcome, interleaved
from .scale import CPU, DIRECT, MILLI, P99, RATE
from .venue import Venue

if TYPE_CHECKING:
    from embedded_postgres import EmbeddedServer

    from .scale import Scale

__all__ = ["cold", "memory", "statistics"]

SIZE = 10
MANY = 50


def cold(server: EmbeddedServer, scale: Scale) -> Outcome:
    """From the start of a process to its first answer, and to a full pool; imports alone."""
    settings = {"rounds": scale.long_rounds, "min_size": SIZE, "max_size": SIZE, "TLS": "yes"}
    metrics = [
        Metric("first", "first answer, ms", MILLI),
        Metric("import_wall", "of that imports, ms", MILLI),
        Metric("import_cpu", "CPU of imports, ms", MILLI),
        Metric("full", f"{SIZE} connections after the first answer, ms", MILLI),
    ]
    outcome = Outcome("cold", "Cold start to the first answer", metrics, settings)
    outcome.notes.append(
        "The first answer includes the start of Python. A pool is full when the server has as many "
        "sessions as min_size; dj_db_conn_pool and those without a pool open on demand alone."
    )
    among = {who.name: who for who in DIRECT if not who.bouncer and who.name != "psycopg alone"}

    def turn(name: str) -> dict[str, float]:
        who = among[name]
        with Venue(server, tls=True, size=SIZE) as venue:
            before = _sessions(server)
            began = time.perf_counter()
            worker = venue.worker(who, least=SIZE)
            worker.call("cycles", count=1)
            answered = time.perf_counter()
            found = {"first": answered - began}
            if who.pool is not None:
                while _sessions(server) < before + SIZE:
                    time.sleep(0.001)
                found["full"] = time.perf_counter() - answered
            imported = worker.call("imported")
        while _sessions(server) > before:
            time.sleep(0.01)
        return {**found, **{f"import_{clock}": value for clock, value in imported.items()}}

    with Venue(server, tls=True, size=SIZE) as venue:
        present = [name for name, who in among.items() if venue.admits(who)]
        outcome.absent = venue.absent
        for name in present:
            # Whoever is first compiles the bytecode.
            venue.worker(among[name], least=SIZE).call("cycles", count=1)
    interleaved(outcome, scale.long_rounds, present, turn)
    return outcome


def memory(server: EmbeddedServer, scale: Scale) -> Outcome:
    """Memory of a process with one connection, and of each further one in its pool."""
    mega, kilo = 2.0**-20, 2.0**-10
    metrics = [
        Metric("one", "process, one connection, MiB", mega, 1),
        Metric("each", "each further connection, KiB", kilo),
        Metric("each_tls", "each further connection with TLS, KiB", kilo),
    ]
    outcome = Outcome(
        "memory", "Memory of a process with one connection", metrics, {"rounds": 2, "pool": MANY}
    )
    outcome.notes.append("What belongs to the process alone: private pages of smaps_rollup.")
    names = ("native pool", "dj_db_conn_pool", "ours, session", "ours, transaction")
    among = {who.name: who for who in named(names)}

    def turn(name: str) -> dict[str, float]:
        found = {}
        for tls in (False, True):
            with Venue(server, tls=tls, size=MANY) as venue:
                worker = venue.worker(among[name])
                worker.hold(1)
                one = worker.call("memory")
                # Threads leave their own traces once; a second time shows none.
                worker.hold(MANY)
                many = worker.call("memory")
                found["each_tls" if tls else "each"] = (many - one) / (MANY - 1)
                found.setdefault("one", one)
        return found

    with Venue(server, tls=False, size=MANY) as venue:
        present = [name for name, who in among.items() if venue.admits(who)]
        outcome.absent = venue.absent
    interleaved(outcome, 2, present, turn)
    return outcome


def statistics(server: EmbeddedServer, scale: Scale) -> Outcome:
    """Throughput without statistics to be asked for, with them, and while they are asked for."""
    settings = {"threads": 4, "rounds": scale.rounds, "seconds of a turn": scale.seconds}
    outcome = Outcome(
        "statistics", "What it costs to be asked for statistics", [CPU, RATE, P99], settings
    )
    outcome.notes.append(
        "Counting itself is part of every checkout. Asked at each turn's start and each second."
    )
    with TemporaryDirectory(dir="/tmp") as base, Venue(server, tls=False, size=SIZE) as venue:
        folders: dict[str, Any] = {name: f"{base}/{name}" for name in ("quiet", "asked")}
        titles = {
            "ours, stats_dir False": venue.worker(OURS, stats_dir=False),
            "ours, nobody asks": venue.worker(OURS, stats_dir=folders["quiet"]),
            "ours, asked each second": venue.worker(OURS, stats_dir=folders["asked"]),
            "native pool": venue.worker(NATIVE),
        }
        for worker in titles.values():
            worker.call("cycles", count=50)

        def turn(name: str) -> dict[str, float]:
            ended = threading.Event()
            seen: list[int] = []

            def ask() -> None:
                while True:
                    seen.append(len(collect(Path(folders["asked"])).reports))
                    if ended.wait(1.0):
                        return

            asking = threading.Thread(target=ask)
            if "asked" in name:
                asking.start()
            try:
                found: dict[str, float] = titles[name].call(
                    "share", threads=4, seconds=scale.seconds
                )
            finally:
                ended.set()
            if "asked" in name:
                asking.join()
                assert set(seen) == {1}
            return found

        interleaved(outcome, scale.rounds, list(titles), turn)
    return outcome


def _sessions(server: EmbeddedServer) -> int:
    query = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'"
    with psycopg.connect(**server.parameters(), sslmode="disable") as connection:
        row = connection.execute(query).fetchone()
    return int(row[0]) if row else 0
