"""Round trips of a transaction, counted between client and server, on Django's engine and on this.

    python benchmarks/round_trips.py
    python benchmarks/round_trips.py --latency

A proxy in a process of its own counts how often the client sends something after the server has
answered. The figures are the same on every machine. With --latency, the same transactions are timed
too, on Django's engine, on its pool and on this engine, in turns: without a proxy (a distance of
0), and through one that delays each message. A figure is the least of all calls of all launches,
which other work on the machine disturbs the least. Both tables go to ``benchmarks/results/``, in
the form of docs/performance.md.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _common import BENCHMARKS, FaultProxy, arguments, free_port, server
from versus.outcome import circumstances

if TYPE_CHECKING:
    import argparse

    from tests.support.transaction_shapes import Shape

    # Seconds by distance, shape and engine.
    Least = dict[str, dict[str, dict[str, float]]]

DJANGO, OURS = "django.db.backends.postgresql", "django_pooled"

ENGINES: dict[str, dict[str, Any]] = {
    # The connection is kept: connecting is not what is compared.
    "Django's engine": {"ENGINE": DJANGO, "CONN_MAX_AGE": None},
    "its pool": {"ENGINE": DJANGO, "OPTIONS": {"pool": {"min_size": 1, "max_size": 2}}},
    "ours": {"ENGINE": OURS, "OPTIONS": {"pool": {"max_size": 2}}},
}


def main() -> None:
    """Count, and measure at every distance."""
    parser = arguments(__doc__)
    parser.add_argument("--latency", action="store_true", help="time them too")
    parser.add_argument("--shapes", nargs="*", default=[""], help="parts of their names")
    parser.add_argument("--rounds", type=int, default=20, help="of a launch")
    parser.add_argument("--launches", type=int, default=3, help="of the process that is timed")
    parser.add_argument("--delays", type=float, nargs="*", default=[0, 0.5, 1, 2], help="ms, added")
    parser.add_argument("--results", type=Path, default=BENCHMARKS / "results", help="folder")
    parser.add_argument("--one-launch", action="store_true", help="time once, print seconds")
    chosen = parser.parse_args()
    if chosen.quick:
        chosen.rounds = 5
    with server() as one, FaultProxy(one.host, one.port, listen=free_port()) as proxy:
        set_up(one.django_settings(), proxy.port)
        if chosen.one_launch:
            print(json.dumps(measured(chosen, one.port, proxy)))
            return
        counts = counted(proxy)
        print(counts, flush=True)
        if not chosen.latency:
            return
        load, facts = os.getloadavg()[0], circumstances(one.parameters())
    times = latency(joined([launched(chosen) for _ in range(chosen.launches)]))
    facts["load of the machine"] = f"{load:.1f} before, {os.getloadavg()[0]:.1f} after"
    lines = [f"- {name}: {value}" for name, value in facts.items()]
    print(times)
    page = ["# Round trips of a transaction", counts, times, "\n".join(lines)]
    (chosen.results / "round_trips.md").write_text("\n\n".join(page) + "\n")


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


def counted(proxy: FaultProxy) -> str:
    """Return the table of round trips."""
    from tests.support.transaction_shapes import SHAPES, count

    rows = ["| shape (ORM, one alias) | Django's engine | ours | goal |", "|---|--:|--:|--:|"]
    for name, shape in SHAPES.items():
        theirs, ours = (count(shape, alias, proxy) for alias in ("Django's engine", "ours"))
        rows.append(f"| {name} | {theirs} | {ours} | {shape.goal} |")
    return "\n".join(rows)


def launched(chosen: argparse.Namespace) -> Least:
    """Measure in a process of its own, with a server of its own."""
    # Identical processes differ for their lifetime, by where the kernel runs them.
    command = [sys.executable, __file__, "--one-launch", "--rounds", str(chosen.rounds)]
    command += ["--shapes", *chosen.shapes, "--delays", *map(str, chosen.delays)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: Least = json.loads(done.stdout.splitlines()[-1])
    return found


def measured(chosen: argparse.Namespace, port: int, proxy: FaultProxy) -> Least:
    """Return the least seconds of a call, of each shape on each engine at each distance."""
    from django.db import connections

    from tests.support.transaction_shapes import SHAPES

    found: Least = {}
    for delay in chosen.delays:
        proxy.delay(delay / 2000)
        for alias in ENGINES:
            # New wrappers: Django's pool belongs to the settings of the first.
            connections[alias].close()
            connections[alias].close_pool()
            connections.settings[alias]["PORT"] = proxy.port if delay else port
            del connections[alias]
        found[f"{delay:g} ms"] = {
            name: least(shape, chosen.rounds, 4 if delay else 20)
            for name, shape in SHAPES.items()
            if shape.on_django and any(part in name for part in chosen.shapes)
        }
    return found


def least(shape: Shape, rounds: int, calls: int) -> dict[str, float]:
    """Return the seconds of the shortest call, by engine; each keeps its connection."""
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
    return {alias: min(each) for alias, each in took.items()}


def joined(launches: list[Least]) -> Least:
    """Return the least figures of all launches."""
    return {
        distance: {
            name: {alias: min(one[distance][name][alias] for one in launches) for alias in ENGINES}
            for name in shapes
        }
        for distance, shapes in launches[0].items()
    }


def latency(found: Least) -> str:
    """Return the table of latencies: ours, and its ratios to Django's engine and to its pool."""
    rows = [
        "| " + " | ".join(["shape, at a distance of", *found]) + " |",
        "|---" + "|--:" * len(found) + "|",
    ]
    for name in next(iter(found.values())):
        cells = []
        for shapes in found.values():
            theirs, pooled, ours = (shapes[name][alias] for alias in ENGINES)
            cells.append(f"{1e3 * ours:.2f} ({ours / theirs:.2f}, {ours / pooled:.2f})")
        rows.append("| " + " | ".join([name, *cells]) + " |")
    return "\n".join(rows)


if __name__ == "__main__":
    main()
