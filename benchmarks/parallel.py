"""Requests per second of 1 to 8 threads in one process, on Django's native pool and on this one.

    python benchmarks/parallel.py
    python3.14t benchmarks/parallel.py
    python3.14t benchmarks/parallel.py --locks

A request is a checkout, ``SELECT 1`` and a checkin. Both engines are in the same process and take
turns, which change places from round to round; a ratio is of the turns of one round, and the table
has the median of all rounds. Run by a Python without the GIL, it shows what that brings.

With ``--locks`` the locks of both pools are replaced by ones that count: how often a request takes
one, how many of those had to wait for another thread, and how long. They are slower themselves.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from _common import server

if TYPE_CHECKING:
    from collections.abc import Callable

ALIASES = ("native", "django_pooled")
MOST = 8

RLock = threading.RLock


class CountedLock(type(RLock())):  # type: ignore[misc]
    """A reentrant lock that counts how often it was taken, and the waits for that.

    It holds the lock when it counts.
    """

    made: list[CountedLock] = []

    def __init__(self) -> None:
        self.taken, self.waits, self.waited = 0, 0, 0.0
        CountedLock.made.append(self)

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        if not super().acquire(blocking=False):
            began = time.perf_counter()
            if not blocking or not super().acquire(timeout=timeout):
                return False
            self.waits += 1
            self.waited += time.perf_counter() - began
        self.taken += 1
        return True

    __enter__ = acquire


def requests(alias: str, number: int, together: threading.Barrier) -> None:
    """Make requests in this thread, once all threads are ready."""
    from django.db import connections

    wrapper = connections[alias]
    for each in range(number + 10):
        if each == 10:
            together.wait()
        with wrapper.cursor() as cursor:
            cursor.execute("SELECT 1")
        wrapper.close()


def turn(alias: str, threads: int, number: int) -> tuple[float, float]:
    """Return the requests per second of wall time, and the processor's microseconds of each."""
    marks: list[tuple[float, float]] = []
    together = threading.Barrier(
        threads, lambda: marks.append((time.perf_counter(), time.process_time()))
    )
    work: Callable[[], None] = partial(requests, alias, number // threads, together)
    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    wall, processor = time.perf_counter() - marks[0][0], time.process_time() - marks[0][1]
    done = number // threads * threads
    return done / wall, processor / done * 1e6


def main() -> None:
    """Start a server, measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--requests", type=int, default=4000, help="of all threads, in each turn")
    parser.add_argument("--locks", action="store_true", help="count what waits for a lock instead")
    chosen = parser.parse_args()
    with server() as one:
        set_up(one.django_settings())
        gil = getattr(sys, "_is_gil_enabled", lambda: True)()
        print(f"Python {sys.version.split()[0]} {'with' if gil else 'without'} the GIL")
        if chosen.locks:
            count_locks(chosen)
        else:
            measure(chosen)


def set_up(database: dict[str, Any]) -> None:
    """Set Django up with a database, by both engines."""
    import django
    from django.conf import settings

    engines = ("django.db.backends.postgresql", "django_pooled")
    pool = {"min_size": 1, "max_size": MOST}
    settings.configure(
        DATABASES={
            "default": {},
            **{
                alias: {"ENGINE": engine, "OPTIONS": {"pool": dict(pool)}, **database}
                for alias, engine in zip(ALIASES, engines, strict=True)
            },
        },
        USE_TZ=True,
    )
    django.setup()


def count_locks(chosen: argparse.Namespace) -> None:
    """Count what waits for the pools' locks, and print the table."""
    from psycopg_pool import pool as psycopg_pool

    locks: dict[str, list[CountedLock]] = {}
    # Each pool makes its locks in its first turn.
    makers = ((threading, "RLock"), (psycopg_pool, "Lock"))
    for module, name in makers:
        setattr(module, name, CountedLock)
    for alias in ALIASES:
        CountedLock.made = locks[alias] = []
        turn(alias, MOST, 400)
    for module, name in makers:
        setattr(module, name, RLock)
    print(f"{'threads':>7}{'engine':>15}{'locks':>8}{'waits':>8}{'waited µs':>11}   per request")
    for threads in range(1, MOST + 1):
        for alias in ALIASES:
            for lock in locks[alias]:
                lock.taken, lock.waits, lock.waited = 0, 0, 0.0
            number = chosen.rounds * chosen.requests
            turn(alias, threads, number)
            taken, waits, waited = (
                sum(getattr(lock, what) for lock in locks[alias]) / number
                for what in ("taken", "waits", "waited")
            )
            print(f"{threads:7}{alias:>15}{taken:8.2f}{waits:8.4f}{waited * 1e6:11.2f}")


def measure(chosen: argparse.Namespace) -> None:
    """Measure both engines, and print the table."""
    print(
        f"{'threads':>7}{'native/s':>11}{'ours/s':>11}{'ratio':>8}{'native µs':>11}{'ours µs':>11}"
    )
    for alias in ALIASES:
        turn(alias, MOST, 400)
    for threads in range(1, MOST + 1):
        found: dict[str, list[tuple[float, float]]] = {alias: [] for alias in ALIASES}
        for number in range(chosen.rounds):
            for alias in ALIASES if number % 2 else reversed(ALIASES):
                found[alias].append(turn(alias, threads, chosen.requests))
        native, ours = (found[alias] for alias in ALIASES)
        ratio = statistics.median(o[0] / n[0] for o, n in zip(ours, native, strict=True))
        rates = [statistics.median(rate for rate, _ in each) for each in (native, ours)]
        costs = [statistics.median(cost for _, cost in each) for each in (native, ours)]
        print(
            f"{threads:7}{rates[0]:11.0f}{rates[1]:11.0f}{ratio:8.2f}"
            f"{costs[0]:11.0f}{costs[1]:11.0f}"
        )


if __name__ == "__main__":
    main()
