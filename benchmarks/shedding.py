"""More requests than a pool can serve: without a limit, with ``max_waiting``, ``queue_target``.

    python benchmarks/shedding.py --quick

Each engine has its turn on the same server, in a process of its own. First there are so many
clients; one that is refused comes again after a pause, as one does that was told Retry-After. Then
requests arrive at random moments, once, twice and four times as many as can be served.
"""

from __future__ import annotations

import time
from statistics import median
from typing import TYPE_CHECKING

from _common import arguments, requests, server, workers
from _overload import THREADS, Contestant, answers, in_turn, load
from _tables import Figures, milliseconds, plain

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from _common import Worker
    from _worker import Request

QUERY = "SELECT pg_sleep(0.05)"
CONNECTIONS = 2


def shed(chosen: argparse.Namespace, max_waiting: int, figures: Figures) -> None:
    """Load each engine in turn, and see how it answers while and after."""
    length = 3.0 if chosen.quick else chosen.seconds
    rows: list[dict[str, float | None]] = []
    limits = {"min_size": CONNECTIONS, "max_size": CONNECTIONS, "max_waiting": max_waiting}
    with server() as one, workers(one, one, limits) as among:
        for worker in among:
            worker.hold(CONNECTIONS)
            worker.call("start", threads=chosen.clients, query=QUERY, pause=chosen.pause)
            time.sleep(length)
            worker.call("stop")
            ended = time.monotonic()
            after = until_fast(worker)
            seen = requests(worker.call("finish"))
            served = [request.took for request in seen if request.error is None]
            refused = [request.took for request in seen if request.error is not None]
            rows.append(
                {
                    "served: p50": median(served),
                    "served: longest": max(served),
                    "served per second": served_in_time(seen, ended) / length,
                    "refused: p50": median(refused) if refused else 0.0,
                    "refused: longest": max(refused, default=0.0),
                    "refused per second": len(refused) / length,
                    "fast again after": after,
                }
            )
    name = f"max_waiting {max_waiting}" if max_waiting else "unlimited"
    for row in rows[0]:
        show = plain if row.endswith("second") else milliseconds
        figures.note(f"{name}: {row}", [one_[row] for one_ in rows], show)


def arrivals(chosen: argparse.Namespace) -> None:
    """Have requests arrive at several rates, and print how each contestant answers them."""
    ours, limit = "django_pooled", {"max_waiting": chosen.max_waiting}
    contestants = [
        Contestant("native", "django.db.backends.postgresql", {}),
        Contestant("native, max_waiting", "django.db.backends.postgresql", limit),
        Contestant(ours, ours, {}),
        Contestant(f"{ours}, max_waiting", ours, limit),
        Contestant(f"{ours}, queue_target", ours, {"queue_target": chosen.queue_target}),
    ]
    length = 3.0 if chosen.quick else chosen.seconds
    capacity = CONNECTIONS / 0.05
    figures = Figures(
        f"arrivals for {length:g} s, {THREADS} threads, {CONNECTIONS} connections, queries of 50 "
        f"ms: {capacity:g} a second can be served; max_waiting {chosen.max_waiting}, queue_target "
        f"{chosen.queue_target:g} s, timeout 5 s",
        [each.column for each in contestants],
    )
    with in_turn(contestants, CONNECTIONS) as among:
        for times in chosen.loads:
            arriving = [{"rate": times * capacity, "query": QUERY}]
            found = [answers(load(worker, arriving, length)[0], length) for worker in among]
            name = f"{times:g} x"
            figures.note(f"{name}: served: p50", [one.p50 for one in found], milliseconds)
            figures.note(f"{name}: served: p99", [one.p99 for one in found], milliseconds)
            in_time = [one.in_time for one in found]
            figures.note(f"{name}: served within 1 s, per second", in_time, plain)
            figures.note(f"{name}: refused per second", [one.refused for one in found], plain)
            late = [one.refused_p50 or 0.0 for one in found]
            figures.note(f"{name}: refused: p50", late, milliseconds)
    figures.print()


def served_in_time(seen: Sequence[Request], ended: float) -> int:
    """Count what was served before the load ended: afterwards, only the queue is worked off."""
    return sum(request.error is None and request.done <= ended for request in seen)


def until_fast(worker: Worker) -> float | None:
    """Return the seconds until a single request takes less than twice its query's time."""
    ended = time.monotonic()
    while (began := time.monotonic()) < ended + 10.0:
        (request,) = requests([worker.call("once", query=QUERY)])
        if request.error is None and request.took < 0.1:
            return began - ended
    return None


def main() -> None:
    """Run both and print the tables."""
    parser = arguments(__doc__)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--clients", type=int, default=48)
    parser.add_argument("--max-waiting", type=int, default=4)
    parser.add_argument("--queue-target", type=float, default=0.1, help="in seconds")
    parser.add_argument("--loads", type=float, nargs="*", default=[1.0, 2.0, 4.0])
    parser.add_argument("--pause", type=float, default=0.25, help="after a refusal, in seconds")
    chosen = parser.parse_args()
    figures = Figures(
        f"{chosen.clients} clients, {CONNECTIONS} connections, queries of 50 ms, a pause of "
        f"{chosen.pause:g} s after a refusal"
    )
    for max_waiting in (0, chosen.max_waiting):
        shed(chosen, max_waiting, figures)
    figures.print()
    arrivals(chosen)


if __name__ == "__main__":
    main()
