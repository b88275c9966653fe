"""The first request of a process that was stopped for a while, as serverless platforms do it.

    python benchmarks/freeze.py --quick

Each engine's process is stopped with idle connections, past the server's idle_session_timeout and
past its own max_lifetime. It is continued when a request is there already. Times are median /
worst of the repetitions; counts are totals. The exit code is 0 if no request of ours failed and
none took more than a connect and 50 ms, else 1.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from statistics import median
from typing import TYPE_CHECKING

from _common import arguments, requests, server, workers
from _tables import Figures, milliseconds, total

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from _common import Worker
    from _worker import Request

CONNECTIONS = 4
APART = 0.5
"""Seconds between two engines."""
BAR = 0.05
"""Seconds that the first request of ours may take beyond one connect."""


def thaw(among: Sequence[Worker]) -> Iterator[tuple[float, Request]]:
    """Continue each stopped process with a request; yields the seconds until its answer, too."""
    began = []
    for worker in among:
        worker.send("once", query="SELECT 1")
        began.append(time.monotonic())
        os.kill(worker.pid, signal.SIGCONT)
        # The next one may not disturb it, nor wait for it: it may take until its timeout.
        time.sleep(APART)
    for worker, since in zip(among, began, strict=True):
        (request,) = requests([worker.answer()])
        yield request.done - since, request


def main() -> int:
    """Run it and print the table; returns the exit code."""
    parser = arguments(__doc__)
    parser.add_argument("--seconds", type=float, default=30.0, help="that a process is stopped")
    parser.add_argument("--idle", type=int, default=5, help="idle_session_timeout, in seconds")
    parser.add_argument("--repeat", type=int, default=5)
    chosen = parser.parse_args()
    if chosen.quick:
        chosen.seconds, chosen.idle, chosen.repeat = 5.0, 2, 2
    lifetime = chosen.seconds / 2
    figures = Figures(
        f"Processes stopped for {chosen.seconds:g} s with {CONNECTIONS} idle connections, "
        f"idle_session_timeout {chosen.idle} s, max_lifetime {lifetime:g} s; {chosen.repeat} times"
    )
    late = 0
    pool = {"min_size": CONNECTIONS, "max_size": CONNECTIONS, "max_lifetime": lifetime}
    with server(idle_session_timeout=f"{chosen.idle}s") as one, workers(one, one, pool) as among:
        for _ in range(chosen.repeat):
            connect = [median(worker.call("connect") for _ in range(9)) for worker in among]
            for worker in among:
                # Without what the last stop has left: the native pool keeps dead connections.
                worker.call("close_pool")
                worker.hold(CONNECTIONS)
                os.kill(worker.pid, signal.SIGSTOP)
            time.sleep(chosen.seconds)
            took, first = zip(*thaw(among), strict=True)
            beyond = [one_ - single for one_, single in zip(took, connect, strict=True)]
            figures.note("first request: failed", [bool(one_.error) for one_ in first], total)
            figures.note("first request", took, milliseconds)
            figures.note("one connect", connect, milliseconds)
            figures.note("first request, beyond one connect", beyond, milliseconds)
            late += first[-1].error is not None or beyond[-1] > BAR
    figures.print()
    if late:
        print(f"WRONG: {late} requests failed or were late")
    return 1 if late else 0


if __name__ == "__main__":
    sys.exit(main())
