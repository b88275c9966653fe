"""Exports beside requests, and an admin in the middle of a rush: one queue beside lanes.

    python benchmarks/lanes.py --quick

Each engine has its turn on the same server, in a process of its own. Requests of each kind arrive
at random moments, whether those before were answered or not. All are served by the same threads: a
lane is of no use to a request that waits for a thread.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from _common import arguments
from _overload import THREADS, Contestant, answers, in_turn, load
from _tables import Figures, milliseconds, plain

if TYPE_CHECKING:
    import argparse

CONNECTIONS = 4
PAGE = {"query": "SELECT pg_sleep(0.05)", "lane": "web"}
EXPORT = {"query": "SELECT pg_sleep(1)", "lane": "task"}
CAPACITY = CONNECTIONS / 0.05

LANES = {"admin": {"reserved": 1}, "task": {"max": 2}}
CONTESTANTS = (
    Contestant("native", "django.db.backends.postgresql", {}),
    Contestant("django_pooled", "django_pooled", {}),
    Contestant("lanes", "django_pooled", {"lanes": LANES}),
    Contestant("lanes, queue_target", "django_pooled", {"lanes": LANES, "queue_target": 0.1}),
)


def measure(title: str, kinds: dict[str, dict[str, Any]], length: float) -> None:
    """Have all kinds of requests arrive together, and print how each contestant answers each."""
    figures = Figures(
        f"{title}, for {length:g} s; {THREADS} threads, {CONNECTIONS} connections",
        [each.column for each in CONTESTANTS],
    )
    with in_turn(CONTESTANTS, CONNECTIONS) as among:
        found = [load(worker, list(kinds.values()), length) for worker in among]
    for number, kind in enumerate(kinds):
        of_kind = [answers(seen[number], length) for seen in found]
        figures.note(f"{kind}: served: p50", [one.p50 for one in of_kind], milliseconds)
        figures.note(f"{kind}: served: p99", [one.p99 for one in of_kind], milliseconds)
        in_time = [one.in_time for one in of_kind]
        figures.note(f"{kind}: served within 1 s, per second", in_time, plain)
        served = [sum(request.error is None for request in seen[number]) / length for seen in found]
        figures.note(f"{kind}: served per second", served, plain)
        figures.note(f"{kind}: refused per second", [one.refused for one in of_kind], plain)
    figures.print()


def main() -> None:
    """Run both and print the tables."""
    parser = arguments(__doc__)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--loads", type=float, nargs="*", default=[1.0, 2.0, 4.0])
    chosen: argparse.Namespace = parser.parse_args()
    length = 3.0 if chosen.quick else chosen.seconds
    measure(
        "pages of 50 ms, a third of what can be served, and twice as many exports of 1 s as can be",
        {"page": {**PAGE, "rate": CAPACITY / 3}, "export": {**EXPORT, "rate": CONNECTIONS * 2}},
        length,
    )
    for times in chosen.loads:
        measure(
            f"pages of 50 ms, {times:g} x what can be served, and an admin",
            {
                "page": {**PAGE, "rate": times * CAPACITY},
                "admin": {**PAGE, "rate": 4.0, "lane": "admin"},
            },
            length,
        )


if __name__ == "__main__":
    main()
