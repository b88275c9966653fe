"""How soon each engine serves again after an outage or a restart: native beside ours.

    python benchmarks/recovery.py --quick
    python benchmarks/recovery.py --only stopped --outages 2 10 20 60 --repeat 3

All engines sit through the same fault at the same time, each in a process of its own, with the
same options and the same number of threads. Times are median / worst of the repetitions; counts
are totals.
"""

from __future__ import annotations

import time
from math import ceil
from typing import TYPE_CHECKING

from _common import arguments, at_once, first_accepted, proxies, requests, server, workers
from _tables import Figures, milliseconds, seconds, total

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence

    from _common import FaultProxy, Worker
    from _worker import Request

THREADS = 10
QUERY = "SELECT pg_sleep(0.05)"
STEADY = 2.0
"""Seconds of undisturbed work that the rate before an outage is taken from."""
WINDOW = 0.25
"""Seconds in which the rate has to be 90 % of what it was, to count as full throughput."""
GIVE_UP = 35.0
"""Seconds after which the first request after a restart is not waited for any longer."""


def outages(chosen: argparse.Namespace, black_hole: bool) -> None:
    """Threads want connections all through an outage: when is the first served, when all."""
    kind = "server stopped"
    options: dict[str, object] = {}
    if black_hole:
        # The attempt that hangs when the hole closes may hang for that much longer.
        kind = "connections cut, then a black hole"
        options = {"connect_timeout": chosen.connect_timeout} if chosen.connect_timeout else {}
    figures = Figures(
        f"Outage ({kind}): seconds after the server is back, {chosen.repeat} times; "
        f"{THREADS} threads, OPTIONS {options}"
    )
    for length in chosen.outages:
        for _ in range(chosen.repeat):
            with (
                server() as one,
                proxies(one) as doors,
                workers(doors if black_hole else one, one, {"timeout": 90.0}, options) as among,
            ):
                rates = start(among)
                began = time.monotonic()
                if black_hole:
                    back = fall_silent(doors, until=began + length)
                else:
                    one.stop("fast")
                    time.sleep(max(0.0, began + length - time.monotonic()))
                    back = [first_accepted(one, one.start)] * len(among)
                wait_for_full_rate(among, rates, chosen.patience)
                seen = [requests(worker.call("seen")) for worker in among]
            served = [
                [request for request in of if request.error is None and request.done > since]
                for of, since in zip(seen, back, strict=True)
            ]
            firsts = [of[0].done if of else None for of in served]
            fulls = [full_from(of, rate) for of, rate in zip(served, rates, strict=True)]
            figures.note(f"{length:g} s: first success", _since(firsts, back), seconds)
            figures.note(f"{length:g} s: full throughput", _since(fulls, back), seconds)
            failed = [sum(request.error is not None for request in of) for of in seen]
            figures.note(f"{length:g} s: failed", failed, total)
    figures.print()


def start(among: Sequence[Worker]) -> list[float]:
    """Have all threads work for a while; returns each engine's requests per second."""
    for worker in among:
        worker.hold(THREADS)
        worker.call("start", threads=THREADS, query=QUERY, pause=0.05)
    time.sleep(STEADY + 0.5)
    since = time.monotonic() - STEADY
    return [worker.call("served", since=since) / STEADY for worker in among]


def fall_silent(doors: Sequence[FaultProxy], until: float) -> list[float]:
    """Cut what is connected, accept and never answer until then; returns when each forwards."""
    for door in doors:
        door.deaf()
        door.cut()
    time.sleep(max(0.0, until - time.monotonic()))
    back = []
    for door in doors:
        door.forward()
        back.append(time.monotonic())
    return back


def wait_for_full_rate(among: Sequence[Worker], rates: Sequence[float], patience: float) -> None:
    """Wait until each has served at its rate for a second, or for that many seconds."""
    until = time.monotonic() + patience
    while time.monotonic() < until:
        time.sleep(0.5)
        served = at_once(among, "served", since=time.monotonic() - 1.0)
        if all(count >= 0.9 * rate for count, rate in zip(served, rates, strict=True)):
            return


def full_from(served: Sequence[Request], rate: float) -> float | None:
    """Return the beginning of the first window with 90 % of that rate."""
    needed = ceil(0.9 * rate * WINDOW)
    for first, last in zip(served, served[needed - 1 :], strict=False):
        if last.done - first.done <= WINDOW:
            return first.done
    return None


def restart(chosen: argparse.Namespace) -> None:
    """After a restart all idle connections are dead: how long takes a request, which fail."""
    figures = Figures(
        f"First request over dead idle connections, {chosen.repeat} times; "
        f"timeout {GIVE_UP:g} s, none left of which is never"
    )
    for idle in (2,) if chosen.quick else (1, 2, 4, 6, 10):
        for _ in range(chosen.repeat):
            with server() as one, workers(one, one, {"timeout": GIVE_UP}) as among:
                for worker in among:
                    worker.hold(idle)
                one.restart("fast")
                connect = [min(worker.call("connect") for _ in range(3)) for worker in among]
                # One after another, since some of it is CPU time in milliseconds.
                results = [until_success(worker) for worker in among]
            figures.note(f"{idle} dead: first success", [at for at, _ in results], milliseconds)
            figures.note(f"{idle} dead: failed before", [fails for _, fails in results], total)
            figures.note(f"{idle} dead: one connect", connect, milliseconds)
    figures.print()


def until_success(worker: Worker) -> tuple[float | None, int]:
    """Ask again and again; returns the seconds it took, and how many requests failed."""
    began, failures = time.monotonic(), 0
    while time.monotonic() < began + GIVE_UP:
        (request,) = requests([worker.call("once", query="SELECT 1")])
        if request.error is None:
            return request.done - began, failures
        failures += 1
    return None, failures


def afterwards(chosen: argparse.Namespace) -> None:
    """An outage longer than reconnect_timeout, max_waiting hit: is the pool whole again after?"""
    length, patience = (5.0, 5.0) if chosen.quick else (10.0, GIVE_UP)
    figures = Figures(
        f"Outage of {length:g} s, reconnect_timeout 3 s: until {THREADS} connections can be held "
        f"at once, {chosen.repeat} times; never is not within {patience:g} s"
    )
    threads = 3 * THREADS
    for asking in (True, False):
        max_waiting = THREADS if asking else 0
        what = f"{threads} threads asking, max_waiting {THREADS}" if asking else "nobody asking"
        for _ in range(chosen.repeat):
            limits = {"reconnect_timeout": 3.0, "max_waiting": max_waiting, "timeout": 2.0}
            with server() as one, workers(one, one, limits) as among:
                for worker in among:
                    worker.hold(THREADS)
                    if asking:
                        worker.call("start", threads=threads, query=QUERY, pause=0.05)
                one.stop("fast")
                if not asking:
                    # Each finds out once that its connection is dead, and leaves.
                    at_once(among, "burst", threads=THREADS, query=QUERY)
                time.sleep(length)
                at_once(among, "finish")
                back = first_accepted(one, one.start)
                whole = at_once(
                    among, "until_whole", connections=THREADS, until=time.monotonic() + patience
                )
            figures.note(what, _since(whole, [back] * len(among)), seconds)
    figures.print()


def _since(instants: Sequence[float | None], beginnings: Sequence[float]) -> list[float | None]:
    return [
        None if instant is None else instant - beginning
        for instant, beginning in zip(instants, beginnings, strict=True)
    ]


PARTS: dict[str, Callable[[argparse.Namespace], None]] = {
    "stopped": lambda chosen: outages(chosen, black_hole=False),
    "black-hole": lambda chosen: outages(chosen, black_hole=True),
    "restart": restart,
    "afterwards": afterwards,
}


def main() -> None:
    """Run the parts that were chosen."""
    parser = arguments(__doc__)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--outages", nargs="+", type=float, default=[2.0, 10.0, 20.0, 60.0])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument(
        "--connect-timeout",
        type=int,
        default=2,
        help="for the black hole, in whole seconds; 0 is each engine's own default",
    )
    parser.add_argument("--patience", type=float, default=45.0, help="for recovery, in seconds")
    chosen = parser.parse_args()
    if chosen.quick:
        chosen.outages, chosen.repeat, chosen.patience = [2.0], 1, 10.0
    for part in chosen.only:
        PARTS[part](chosen)


if __name__ == "__main__":
    main()
