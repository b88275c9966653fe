"""What each step of a request costs the client's processor, from libpq upwards.

Run as a program it is the process in which the steps are taken, on three engines at once.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

import _worker

if TYPE_CHECKING:
    from collections.abc import Callable

    from example_project.embedded_postgres import EmbeddedServer

    from .outcome import Outcome
    from .scale import Scale

__all__ = ["steps"]

QUERY = "SELECT 1"


def steps(server: EmbeddedServer, scale: Scale) -> Outcome:
    """Each step by itself, repeated."""
    from _common import Engine, Worker

    from .contestants import NATIVE, OURS, OURS_TRANSACTION, PER_REQUEST
    from .outcome import Metric, Outcome, interleaved
    from .scale import MICRO
    from .venue import Venue

    outcome = Outcome(
        "steps",
        "Where the time of a request goes",
        [Metric("cpu", "CPU of the client, µs", MICRO, 1), Metric("wall", "wall, µs", MICRO, 1)],
        {"rounds": scale.rounds, "repetitions in a turn": scale.cycles},
    )
    with Venue(server, tls=False, size=10) as venue:
        entry = venue.entry(OURS)
        others = {
            "persistent": {**venue.entry(PER_REQUEST), "CONN_MAX_AGE": None},
            "native": venue.entry(NATIVE),
            "transaction": venue.entry(OURS_TRANSACTION),
        }
        worker = Worker(Engine("steps"), {**entry, "OTHERS": others}, "versus.steps")
        venue.on_exit(worker.close)
        interleaved(
            outcome,
            scale.rounds,
            worker.call("names"),
            lambda name: worker.call("take", name=name, count=scale.cycles),
        )
    return outcome


class Commands:
    """The steps, by name; those with two spaces before them are part of the one above."""

    def __init__(self) -> None:
        self._steps = {**_wire(), **_persistent(), **_native(), **_ours()}

    def names(self) -> list[str]:
        """Return all, in their order."""
        return list(self._steps)

    def take(self, name: str, count: int) -> dict[str, float]:
        """Take one step that many times."""
        step = self._steps[name]
        wall, cpu = time.perf_counter(), time.thread_time()
        for _ in range(count):
            step()
        cpu, wall = time.thread_time() - cpu, time.perf_counter() - wall
        return {"cpu": cpu / count, "wall": wall / count}


def _wire() -> dict[str, Callable[[], object]]:
    import psycopg
    from django.db import connections

    parameters = connections["persistent"].get_connection_params()
    alone = psycopg.connect(**parameters, autocommit=True)
    cursor = alone.cursor()

    def psycopg_cycle() -> None:
        with alone.cursor() as own:
            own.execute(QUERY)
            own.fetchone()

    return {
        "libpq: one query and its answer": lambda: alone.pgconn.exec_(b"SELECT 1"),
        "psycopg: execute() on a cursor that is there": lambda: cursor.execute(QUERY),
        "psycopg: cursor, execute(), fetchone()": psycopg_cycle,
    }


def _cycle(wrapper: Any) -> Callable[[], None]:
    def cycle() -> None:
        wrapper.close_if_unusable_or_obsolete()
        with wrapper.cursor() as cursor:
            cursor.execute(QUERY)
            cursor.fetchone()
        wrapper.close_if_unusable_or_obsolete()

    return cycle


def _persistent() -> dict[str, Callable[[], object]]:
    from django.db import close_old_connections, connections

    wrapper = connections["persistent"]
    wrapper.ensure_connection()

    def cursor() -> None:
        with wrapper.cursor():
            pass

    return {
        "Django, persistent: whole request": _cycle(wrapper),
        "  Django: cursor() and its close()": cursor,
        "  Django: close_if_unusable_or_obsolete()": wrapper.close_if_unusable_or_obsolete,
        "Django: close_old_connections(), four databases": close_old_connections,
    }


def _native() -> dict[str, Callable[[], object]]:
    from django.db import connections

    wrapper = connections["native"]
    wrapper.ensure_connection()
    wrapper.close()
    pool = wrapper.pool

    def borrow() -> None:
        pool.putconn(pool.getconn())

    def connect() -> None:
        wrapper.connect()
        wrapper.close()

    return {
        "native pool: whole request": _cycle(wrapper),
        "  Django: connect() and close()": connect,
        "    psycopg_pool: getconn() and putconn()": borrow,
    }


def _ours() -> dict[str, Callable[[], object]]:
    from time import monotonic

    from django.db import connection as wrapper
    from django.db import connections

    from django_pooled.liveness import looks_alive
    from django_pooled.reclaim import caller
    from django_pooled.reset import reset

    wrapper.ensure_connection()
    wrapper.close()
    pool = wrapper.pool
    own = pool.checkout()
    alive = pool.checkout()

    def connect() -> None:
        wrapper.connect()
        wrapper.close_if_unusable_or_obsolete()

    def borrow() -> None:
        pool.checkin(pool.checkout())

    def take() -> None:
        pool._pool.give(pool._pool.take(60.0), monotonic())

    def note() -> None:
        pool._usage.begin(own, 0.0, pool._left_behind)
        pool._usage.end(own)
        pool._usage.done(own, 0.0, True)

    return {
        "ours, session: whole request": _cycle(wrapper),
        "  ours: connect() and close()": connect,
        "    pool: checkout() and checkin()": borrow,
        "      psycopg_pool: take and give back": take,
        "      a look at the socket": lambda: looks_alive(alive),
        "      who has it since when: begin, end; counters": note,
        "        the line of code that checked out": caller,
        "      reset": lambda: reset(alive, "default", "rollback", lambda _: None),
        "ours, transaction: whole request": _cycle(connections["transaction"]),
    }


def main() -> None:
    """Set up all engines and obey."""
    import json

    import django
    from django.conf import settings

    entry = json.loads(os.environ["BENCHMARK_DATABASE"])
    settings.configure(DATABASES={**entry.pop("OTHERS"), "default": entry}, USE_TZ=True)
    django.setup()
    _worker.obey(Commands())


if __name__ == "__main__":
    main()
