"""What it costs to know a transaction's id before its COMMIT: as a ratio, at several distances.

    python benchmarks/commit_cost.py --quick

One thread runs the same transaction in turns: under Django's atomic(), which knows nothing of
it; under retry_transaction with commit_check="raise", which does not ask; with the ways to
know it, of which "xid" and "token" ride with the first write; and with a SELECT of its own before
COMMIT, which is what has to be beaten. A proxy delays each message, so that a round trip takes
twice as long. Figures are the median of the rounds; the ratio is to atomic() in the same round.
"""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING, Any

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
    parser.add_argument("--delays", type=float, nargs="*", default=[0, 0.0005, 0.001])
    chosen = parser.parse_args()
    if chosen.quick:
        chosen.rounds, chosen.calls = 5, 40
    with server() as one:
        for delay in chosen.delays:
            if delay:
                with FaultProxy(one.host, one.port, listen=free_port()) as door:
                    door.delay(delay)
                    measure(chosen, one, door.port, f"round trip of {2e3 * delay:g} ms")
            else:
                measure(chosen, one, one.port, "loopback, no proxy")


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
    print(f"\n{title}: {chosen.rounds} rounds of {chosen.calls} calls")
    for name, seconds in took.items():
        base = took["read, atomic()" if name.startswith("read") else "write, atomic()"]
        ratios = [mine / theirs for mine, theirs in zip(seconds, base, strict=True)]
        low, _, high = statistics.quantiles(ratios, n=4)
        print(
            f"{name:40} {1e6 * statistics.median(seconds):8.0f} µs   "
            f"ratio {statistics.median(ratios):.3f}  ({low:.3f} to {high:.3f})",
            flush=True,
        )


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
