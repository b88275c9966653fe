"""The process in which a request is taken apart, on several engines at once."""

from __future__ import annotations

import itertools
import os
import time
from typing import TYPE_CHECKING, Any

import _worker

if TYPE_CHECKING:
    from collections.abc import Callable

QUERY = "SELECT 1"

ENGINES = {
    "persistent": "persistent",
    "native pool": "native",
    "ours, session": "default",
    "ours, transaction": "transaction",
}
PARTS = (
    "close_if_unusable_or_obsolete(), at the start",
    "ensure_connection()",
    "cursor()",
    "execute()",
    "fetchone(), cursor.close()",
    "close_if_unusable_or_obsolete(), at the end",
)


class Commands:
    """The steps, by name; those with two spaces before them are part of the one above."""

    def __init__(self) -> None:
        self._steps = {**_wire(), **_persistent(), **_native(), **_ours()}

    def engines(self) -> list[str]:
        """Return the engines whose requests can be taken apart."""
        return list(ENGINES)

    def take_engines(self, name: str, count: int) -> dict[str, float]:
        """Make that many requests, and add up the processor time of each part."""
        from django.db import connections

        wrapper, clock = connections[ENGINES[name]], time.thread_time
        spent = [0.0] * len(PARTS)
        for _ in range(count):
            marks = [clock()]
            wrapper.close_if_unusable_or_obsolete()
            marks.append(clock())
            wrapper.ensure_connection()
            marks.append(clock())
            cursor = wrapper.cursor()
            marks.append(clock())
            cursor.execute(QUERY)
            marks.append(clock())
            cursor.fetchone()
            cursor.close()
            marks.append(clock())
            wrapper.close_if_unusable_or_obsolete()
            marks.append(clock())
            for number, (began, ended) in enumerate(itertools.pairwise(marks)):
                spent[number] += (ended - began) / count
        return {"sum": sum(spent), **dict(zip(PARTS, spent, strict=True))}

    def names(self) -> list[str]:
        """Return all, in their order."""
        return list(self._steps)

    def take_names(self, name: str, count: int) -> dict[str, float]:
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

    from django_pooled.diagnostics.call_site import caller
    from django_pooled.pool.checkout import Checkout
    from django_pooled.pool.liveness import looks_alive

    wrapper.ensure_connection()
    wrapper.close()
    pool = wrapper.pool
    own, alive, idle = pool.checkout(), pool.checkout(), pool.checkout()
    pool.checkin(idle)
    del idle

    def connect() -> None:
        wrapper.connect()
        wrapper.close_if_unusable_or_obsolete()

    def borrow() -> None:
        # Without a reference of its own, as the wrapper does: else it gets another object.
        pool.checkin_from([pool.checkout()])

    def take() -> None:
        connection = pool._pool.take_idle()
        with pool._lock:
            pool._pool.give(connection, monotonic())

    def note() -> None:
        now, thread = monotonic(), pool._checkouts.threads.this
        checkout = Checkout(own, now, now, thread, pool._checkin, None)
        pool._checkouts.begin(own, checkout)
        own.claim()
        with pool._lock:
            pool._checkouts.end(checkout, now, True)

    return {
        "ours, session: whole request": _cycle(wrapper),
        "  ours: connect() and close()": connect,
        "    pool: checkout() and checkin()": borrow,
        "      psycopg_pool: take and give back": take,
        "      a look at the socket": lambda: looks_alive(alive),
        "      who has it since when: begin, end; counters": note,
        "        the line of code that checked out": caller,
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
