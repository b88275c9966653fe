"""What it costs to know a transaction's id before its COMMIT: as a ratio, at several distances.

    python benchmarks/commit_cost.py --quick

One thread runs the same transaction in turns: under Django's atomic(), which knows nothing of
it; under retry_transaction with commit_check="raise", which does not ask; with the ways to
know it, of which "xid" and "token" ride with the first write; and with a SELECT of its own before
COMMIT, which is what has to be beaten. A proxy delays each message; how long a round trip takes
is measured. Figures are medians of the rounds, ratios are taken within each round: to atomic(), and
to commit_check="raise", which is what the check itself costs.
"""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING, Any

import psycopg
from _common import FaultProxy, arguments, free_port, server

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    Transaction = Callable[[], None]


def main() -> None:
    """Measure every distance."""
    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--calls", type=int, default=100, help="in each round, of each kind")
    parser.add_argument("--delays", type=float, nargs="*", default=[0, 0.00035], help="seconds")
    chosen = parser.parse_args()
    if chosen.quick:
        chosen.rounds, chosen.calls = 5, 40
    with server() as one:
        measure(chosen, one, one.port, "loopback")
        for delay in chosen.delays:
            with FaultProxy(one.host, one.port, listen=free_port()) as door:
                door.delay(delay)
                measure(chosen, one, door.port, f"a proxy that adds {1e3 * delay:g} ms each way")


def measure(chosen: argparse.Namespace, one: Any, port: int, title: str) -> None:
    """Run all kinds in turns against one port, and print a table."""
    kinds = transactions({**one.django_settings(), "PORT": port})
    took: dict[str, list[float]] = {name: [] for name in kinds}
    for number in range(chosen.rounds + 1):
        for name, run in kinds.items():
            began = time.perf_counter()
            for _ in range(chosen.calls):
                run()
            if number:  # the first round warms up
                took[name].append((time.perf_counter() - began) / chosen.calls)
    print(
        f"\n{title}; a round trip takes {1e3 * round_trip(one, port):.2f} ms; "
        f"{chosen.rounds} rounds of {chosen.calls} calls"
    )
    print(f"{'':32}{'each':>11}   to atomic()            to 'raise'")
    for name, seconds in took.items():
        kind = name.partition(",")[0]
        bases = took[f"{kind}, atomic()"], took[f"{kind}, commit_check='raise'"]
        ratios = "   ".join(ratio(seconds, base) for base in bases)
        print(f"{name:32}{1e6 * statistics.median(seconds):8.0f} µs   {ratios}", flush=True)


def ratio(mine: list[float], theirs: list[float]) -> str:
    """Return the median of the ratios of each round, and their quartiles."""
    ratios = [one / other for one, other in zip(mine, theirs, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return f"{middle:.3f} ({low:.3f}-{high:.3f})"


def round_trip(one: Any, port: int) -> float:
    """Return the median time of an empty query, in seconds."""
    with psycopg.connect(**{**one.parameters(), "port": port}, autocommit=True) as connection:
        took = []
        for _ in range(200):
            began = time.perf_counter()
            connection.execute("")
            took.append(time.perf_counter() - began)
    return statistics.median(took)


def transactions(database: dict[str, Any]) -> dict[str, Transaction]:
    """Return what is compared, by name; each call is one transaction of one small statement."""
    import django
    from django.conf import settings
    from django.db import connection, connections
    from django.db.transaction import atomic

    if not settings.configured:
        settings.configure(
            DATABASES={"default": {"ENGINE": "django_pooled", **database}},
            INSTALLED_APPS=["django_pooled", "django_pooled.tokens"],
            USE_TZ=True,
        )
        django.setup()
    else:
        connection.close()
        connections.settings["default"].update(PORT=database["PORT"])
        connections["default"].settings_dict.update(PORT=database["PORT"])
    from django.core.management import call_command

    from django_pooled import retry_transaction

    call_command("migrate", verbosity=0)
    with connection.cursor() as cursor:
        cursor.execute("CREATE TABLE IF NOT EXISTS cost (id int PRIMARY KEY, n int)")
        cursor.execute("INSERT INTO cost VALUES (1, 0) ON CONFLICT DO NOTHING")

    def write() -> None:
        with connection.cursor() as cursor:
            cursor.execute("UPDATE cost SET n = n + 1 WHERE id = %s", [1])

    def read() -> None:
        with connection.cursor() as cursor:
            cursor.execute("SELECT n FROM cost WHERE id = %s", [1])
            cursor.fetchone()

    def then_asks(function: Transaction) -> Transaction:
        def both() -> None:
            function()
            with connection.cursor() as cursor:
                cursor.execute("SELECT pg_current_xact_id_if_assigned()")
                cursor.fetchone()

        return both

    kinds: dict[str, Transaction] = {}
    for name, function in (("write", write), ("read", read)):
        kinds[f"{name}, atomic()"] = atomic(function)
        kinds[f"{name}, commit_check='raise'"] = retry_transaction(commit_check="raise")(function)
        kinds[f"{name}, commit_check='xid'"] = retry_transaction(function)
        kinds[f"{name}, commit_check='token'"] = retry_transaction(commit_check="token")(function)
        kinds[f"{name}, SELECT before COMMIT"] = atomic(then_asks(function))
    return kinds


if __name__ == "__main__":
    main()
