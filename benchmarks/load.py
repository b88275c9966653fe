"""Far more threads than connections while sessions are killed at random: native beside ours.

    python benchmarks/load.py --quick
    python benchmarks/load.py --seconds 60

Each engine has its turn on the same server, in a process of its own. A request that was under way
on a killed session fails; all others have to succeed, and nothing may get lost.
"""

from __future__ import annotations

import random
import sys
import time
from collections import Counter
from statistics import quantiles
from typing import TYPE_CHECKING, Any

import psycopg
from _background import Background
from _common import ENGINES, arguments, requests, server, workers
from _tables import Figures, milliseconds, plain

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from _common import EmbeddedServer
    from _worker import Request

CONNECTIONS = 10
QUERY = "SELECT pg_sleep(0.01)"
SESSIONS = "FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"


class Killer(Background):
    """Kills a session now and then, and looks how many there are."""

    def __init__(self, one: EmbeddedServer, every: float) -> None:
        super().__init__()
        self.killed = 0
        self.most_sessions = 0
        self._one = one
        self._every = every

    def _run(self) -> None:
        due = time.monotonic()
        with psycopg.connect(**self._one.parameters(), autocommit=True) as operator:
            while not self._end.wait(0.02):
                pids = [row[0] for row in operator.execute(f"SELECT pid {SESSIONS}")]
                self.most_sessions = max(self.most_sessions, len(pids))
                if pids and time.monotonic() > due:
                    operator.execute("SELECT pg_terminate_backend(%s)", [random.choice(pids)])
                    self.killed += 1
                    due = time.monotonic() + random.uniform(0.0, 2 * self._every)


def load(chosen: argparse.Namespace) -> list[str]:
    """Give each engine its turn; returns what is wrong with ours."""
    length = 10.0 if chosen.quick else chosen.seconds
    figures = Figures(
        f"{chosen.threads} threads over {CONNECTIONS} connections for {length:g} s, a session "
        f"killed every {chosen.every:g} s on average"
    )
    results: list[dict[str, float | None]] = []
    wrong: list[str] = []
    with (
        server(max_connections="50") as one,
        workers(one, one, {"max_size": CONNECTIONS, "timeout": 30.0}) as among,
    ):
        for worker in among:
            worker.hold(CONNECTIONS)
            with Killer(one, chosen.every) as killer:
                worker.call("start", threads=chosen.threads, query=QUERY, pause=0.01)
                time.sleep(length)
                worker.call("stop")
                seen = requests(worker.call("finish"))
            counters = worker.call("counters")
            most_in_use = worker.call("most_in_use")
            ended = time.monotonic()
            whole = worker.call("until_whole", connections=CONNECTIONS, until=ended + 10.0)
            worker.call("close_pool")
            results.append(
                {
                    **described(seen, chosen.threads),
                    "sessions killed": killer.killed,
                    "most sessions at the server": killer.most_sessions,
                    "most in use at the same time": most_in_use,
                    "wait afterwards for all ten at once": None if whole is None else whole - ended,
                }
            )
            errors = Counter(request.error for request in seen if request.error)
            print(f"{worker.name}: {dict(errors)}", flush=True)
            if worker.name == ENGINES[-1].name:
                wrong += discrepancies(seen, counters, most_in_use, whole)
    for row in results[0]:
        show = milliseconds if row.startswith("wait") else plain
        figures.note(row, [result[row] for result in results], show)
    figures.print()
    return wrong


def described(seen: Sequence[Request], threads: int) -> dict[str, float | None]:
    """Return the figures of one engine."""
    waits = [request.waited for request in seen if request.got is not None]
    cuts = quantiles(waits, n=100)
    per_thread = Counter(request.thread for request in seen if request.error is None)
    length = seen[-1].done - min(request.asked for request in seen)
    served = [per_thread[number] for number in range(threads)]
    return {
        "requests per second": len(waits) / length,
        "wait, p50": cuts[49],
        "wait, p99": cuts[98],
        "wait, longest": max(waits),
        "served per thread, fewest": min(served),
        "served per thread, most": max(served),
        "failed with a connection": sum(1 for r in seen if r.error and r.got is not None),
        "failed without": sum(1 for r in seen if r.error and r.got is None),
    }


def discrepancies(
    seen: Sequence[Request], counters: dict[str, Any], most_in_use: int, whole: float | None
) -> list[str]:
    """Compare what the threads saw with what the pool counted."""
    checkouts = sum(request.got is not None for request in seen) + CONNECTIONS
    given_back = counters["checkins"] + counters["discarded"] + counters["in_use"]
    print(
        f"counters: {counters['checkouts']} checkouts = {counters['checkins']} checkins "
        f"+ {counters['discarded']} discarded + {counters['in_use']} in use"
    )
    wrong = []
    if counters["checkouts"] != given_back:
        wrong.append(f"{counters['checkouts']} checkouts are not {given_back}")
    if counters["checkouts"] != checkouts:
        wrong.append(f"the threads had {checkouts} connections, {counters['checkouts']} counted")
    if most_in_use > CONNECTIONS:
        wrong.append(f"{most_in_use} connections were in use at the same time")
    if whole is None:
        wrong.append("connections were lost")
    if lost := sum(1 for request in seen if request.error and request.got is None):
        wrong.append(f"{lost} requests got no connection")
    return wrong


def main() -> int:
    """Run it and print the table; returns the exit code."""
    parser = arguments(__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--threads", type=int, default=500)
    parser.add_argument("--every", type=float, default=0.5, help="seconds between two kills")
    wrong = load(parser.parse_args())
    for sentence in wrong:
        print(f"WRONG: {sentence}")
    if not wrong:
        print("Nothing lost, nothing over-counted, the counters add up.")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
