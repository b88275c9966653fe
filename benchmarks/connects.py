"""How many connects each engine makes while the server is away, and how fast a burst is served.

    python benchmarks/connects.py --quick

The engines work at the same time, each in a process of its own behind a proxy of its own, which
counts. Times are median / worst of the repetitions.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from _common import arguments, connections_to, proxies, requests, server, workers
from _tables import Figures, milliseconds, plain

if TYPE_CHECKING:
    import argparse

THREADS = 10
QUERY = "SELECT pg_sleep(0.05)"
SHORT = "SELECT pg_sleep(0.02)"


def during_an_outage(chosen: argparse.Namespace) -> None:
    """Ten threads wait for connections, and the proxy resets them, or never answers."""
    length = 5.0 if chosen.quick else chosen.seconds
    figures = Figures(
        f"Connects in an outage of {length:g} s, {THREADS} connections wanted; connect_timeout 2 s"
    )
    for silent in (False, True):
        with (
            server() as one,
            proxies(one) as doors,
            workers(doors, one, {"timeout": 90.0}, {"connect_timeout": 2}) as among,
        ):
            for worker in among:
                worker.hold(THREADS)
                worker.call("start", threads=THREADS, query=QUERY, pause=0.05)
            time.sleep(1.0)
            for door in doors:
                if silent:
                    door.deaf()
                else:
                    # Nobody listens there, so it resets what it has accepted.
                    door.retarget(door.host, 1)
                door.cut()
            began, most = time.monotonic(), [0] * len(doors)
            while time.monotonic() < began + length:
                time.sleep(0.02)
                most = [
                    max(n, connections_to(door.port)) for n, door in zip(most, doors, strict=True)
                ]
            made = [sum(at > began for at in door.connects()) for door in doors]
        name = "accepts, never answers" if silent else "accepts, resets"
        figures.note(f"{name}: connects", made, plain)
        if silent:
            figures.note(f"{name}: at the same time", most, plain)
    figures.print()


def cold_burst(chosen: argparse.Namespace) -> None:
    """Twenty threads come to an empty pool of ten."""
    figures = Figures(
        f"Cold burst: 20 threads, an empty pool of 10, requests of 20 ms, {chosen.repeat} times"
    )
    with server() as one, proxies(one) as doors:
        for door in doors:
            # A connect is four round trips, each delayed both ways.
            door.delay(chosen.connect / 8)
        with workers(doors, one, {"min_size": 0}) as among:
            for number in range(chosen.repeat + 1):
                took, connect = [], []
                # One after another: ten connects side by side are CPU time, too.
                for worker in among:
                    connect.append(sorted(worker.call("connect") for _ in range(3))[1])
                    seen = requests(worker.call("burst", threads=20, query=SHORT))
                    worker.call("close_pool")
                    asked = min(request.asked for request in seen)
                    took.append(max(request.got or float("inf") for request in seen) - asked)
                if number == 0:
                    continue  # the first round imports things and warms up
                figures.note("all have had one after", took, milliseconds)
                figures.note("one connect", connect, milliseconds)
                ratios = [time_ / single for time_, single in zip(took, connect, strict=True)]
                figures.note("in connects", ratios, plain)
    figures.print()


def main() -> None:
    """Run both."""
    parser = arguments(__doc__)
    parser.add_argument("--seconds", type=float, default=30.0, help="length of the outage")
    parser.add_argument("--connect", type=float, default=0.05, help="seconds added to a connect")
    parser.add_argument("--repeat", type=int, default=10)
    chosen = parser.parse_args()
    during_an_outage(chosen)
    cold_burst(chosen)


if __name__ == "__main__":
    main()
