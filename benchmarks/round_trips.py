"""Round trips of a transaction, counted between client and server, on Django's engine and on this.

    python benchmarks/round_trips.py

A proxy in a process of its own counts how often the client sends something after the server has
answered. The figures are the same on every machine. With --latency, the same transactions are timed
through a proxy that delays each message, on Django's engine, on its pool and on this engine, in
turns. A figure is the least of all calls, which other work on the machine disturbs the least.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from _common import FaultProxy, arguments, free_port, server

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from tests.support.transaction_shapes import Shape

DJANGO, OURS = "django.db.backends.postgresql", "django_pooled"

ENGINES: dict[str, dict[str, Any]] = {
    # The connection is kept: connecting is not what is compared.
    "Django's engine": {"ENGINE": DJANGO, "CONN_MAX_AGE": None},
    "its pool": {"ENGINE": DJANGO, "OPTIONS": {"pool": {"min_size": 1, "max_size": 2}}},
    "ours": {"ENGINE": OURS, "OPTIONS": {"pool": {"max_size": 2}}},
}


def main() -> None:
    """Count, or measure at every distance."""
    parser = arguments(__doc__)
    parser.add_argument("--latency", action="store_true", help="time them")
    parser.add_argument("--shapes", nargs="*", default=[""], help="parts of their names")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--delays", type=float, nargs="*", default=[0, 0.5, 1, 2], help="ms, added")
    chosen = parser.parse_args()
    if chosen.quick:
        chosen.rounds = 5
    with server() as one, FaultProxy(one.host, one.port, listen=free_port()) as proxy:
        set_up(one.django_settings(), proxy.port)
        if chosen.latency:
            measure(chosen, one.port, proxy)
        else:
            print_counts(proxy)


def set_up(database: dict[str, Any], port: int) -> None:
    """Have an alias for each engine, and the tables."""
    import django
    from django.conf import settings
    from django.core.management import call_command

    databases = {
        name: {**database, "PORT": port, **more, "OPTIONS": more.get("OPTIONS", {})}
        for name, more in ENGINES.items()
    }
    settings.configure(
        DATABASES={"default": databases["ours"], **databases},
        INSTALLED_APPS=["tests.app"],
        DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
        USE_TZ=True,
    )
    django.setup()
    call_command("migrate", run_syncdb=True, verbosity=0)


def print_counts(proxy: FaultProxy) -> None:
    """Print the table of docs/performance.md."""
    from tests.support.transaction_shapes import SHAPES, count

    print("| shape (ORM, one alias) | Django's engine | ours | goal |\n|---|--:|--:|--:|")
    for name, shape in SHAPES.items():
        theirs = count(shape, "Django's engine", proxy)
        print(f"| {name} | {theirs} | {count(shape, 'ours', proxy)} | {shape.goal} |", flush=True)


def measure(chosen: argparse.Namespace, port: int, proxy: FaultProxy) -> None:
    """Print a table for each distance."""
    from django.db import connections

    from tests.support.transaction_shapes import SHAPES

    for delay in (None, *chosen.delays):
        proxy.delay((delay or 0) / 2000)
        for alias in ENGINES:
            # New wrappers: Django's pool belongs to the settings of the first.
            connections[alias].close()
            connections[alias].close_pool()
            connections.settings[alias]["PORT"] = port if delay is None else proxy.port
            del connections[alias]
        where = "loopback" if delay is None else f"a proxy that adds {delay:g} ms to a round trip"
        print(f"\n{where}; {chosen.rounds} rounds\n")
        print("| shape | Django's engine, ms | its pool | ours | ours to Django's | to its pool |")
        print("|---|--:|--:|--:|--:|--:|")
        for name, shape in SHAPES.items():
            if shape.on_django and any(part in name for part in chosen.shapes):
                took = times(shape, chosen.rounds, 20 if delay is None else 4)
                print_line(name, list(took.values()))


def times(shape: Shape, rounds: int, calls: int) -> dict[str, list[float]]:
    """Return the seconds of each call, by engine; each keeps its connection."""
    from tests.support.transaction_shapes import prepare

    took: dict[str, list[float]] = {alias: [] for alias in ENGINES}
    for number in range(rounds + 1):
        for alias, each in took.items():
            for _ in range(calls):
                prepare(alias)
                began = time.perf_counter()
                shape.run(alias)
                if number:  # the first round warms up
                    each.append(time.perf_counter() - began)
    return took


def print_line(name: str, took: Sequence[list[float]]) -> None:
    theirs, pooled, ours = took
    least = " | ".join(f"{1e3 * min(each):.3f}" for each in took)
    ratios = f"{min(ours) / min(theirs):.2f} | {min(ours) / min(pooled):.2f}"
    print(f"| {name} | {least} | {ratios} |", flush=True)


if __name__ == "__main__":
    main()
