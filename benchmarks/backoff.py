"""How long to wait between two attempts of a transaction: many threads raise one row by one.

    python benchmarks/backoff.py --quick

Each call reads the row and writes it back, under SERIALIZABLE or REPEATABLE READ, in
``retry_transaction`` with one of several backoffs. They take turns on the same server, in another
order each round.

Threads that call again at once flatter long waits: while the others sleep, one has the row to
itself, and its many quick calls hide their few slow ones. "Least share" tells: what the thread got
that was served least, as a part of an equal share. Threads that pause between two calls are closer
to the requests of a site. "Over 5" are the calls that needed more attempts than there are by
default, "gave up" those that used up ``--max-attempts``.
"""

from __future__ import annotations

import multiprocessing
import random
import statistics
import threading
import time
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, NamedTuple

from _common import arguments, server
from psycopg import IsolationLevel, connect

from django_pooled.pool.backoff import Backoff
from django_pooled.pool.options import PoolOptions

if TYPE_CHECKING:
    from collections.abc import Sequence
    from multiprocessing.connection import Connection

PROCESSES = 2
LEVELS = (IsolationLevel.SERIALIZABLE, IsolationLevel.REPEATABLE_READ)


class Load(NamedTuple):
    """What the threads do."""

    threads: int
    """In all processes together."""
    pause: float
    """Seconds between two calls of a thread, on average."""
    work: float
    """Seconds between reading the row and writing it."""

    def __str__(self) -> str:
        pause = f"{self.pause * 1e3:g} ms between two calls" if self.pause else "no pause"
        work = f", {self.work * 1e3:g} ms between read and write" if self.work else ""
        return f"{self.threads} threads, {pause}{work}"


LOADS = (
    Load(16, pause=0.0, work=0.0),
    Load(4, pause=0.0, work=0.0),
    Load(16, pause=0.03, work=0.0),
    Load(16, pause=0.0, work=0.005),
    Load(16, pause=0.2, work=0.005),
)


class EqualJitter(Backoff):
    """Half of each wait is fixed, the other half random."""

    def wait(self, attempt: int) -> float:
        bound = min(self.maximum, self.initial * 2 ** (attempt - 1))
        return random.uniform(bound / 2, bound)


CANDIDATES: dict[str, Backoff] = {
    "immediate": Backoff(initial=0.0, maximum=0.0),
    "full jitter, 2 ms to 1 s": Backoff(initial=0.002, maximum=1.0),
    "full jitter, 5 ms to 0.1 s": Backoff(initial=0.005, maximum=0.1),
    "full jitter, 10 ms to 0.5 s": Backoff(initial=0.01, maximum=0.5),
    "full jitter, 25 ms to 0.25 s": Backoff(initial=0.025, maximum=0.25),
    "full jitter, 25 ms to 1 s": Backoff(initial=0.025, maximum=1.0),
    "full jitter, 50 ms to 1 s": Backoff(initial=0.05, maximum=1.0),
    "full jitter, 100 ms to 1 s": Backoff(initial=0.1, maximum=1.0),
    "equal jitter, 25 ms to 1 s": EqualJitter(initial=0.025, maximum=1.0),
    "no jitter, 25 ms to 1 s": Backoff(initial=0.025, maximum=1.0, jitter=False),
}


class Call(NamedTuple):
    """One call of the decorated function."""

    thread: int
    done: float
    took: float
    attempts: int
    succeeded: bool


class Turn(NamedTuple):
    """What the processes are told to do next."""

    backoff: Backoff
    level: IsolationLevel
    load: Load
    max_attempts: int
    until: float
    """Monotonic instant after which no call begins."""


@dataclass
class Seen:
    """What one backoff did in all its turns under one load."""

    calls: list[Call] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    """Calls per second, of each turn."""
    shares: list[float] = field(default_factory=list)
    """Calls of the thread that got fewest, as a part of an equal share."""

    def add(self, calls: list[Call], began: float, until: float, threads: int) -> None:
        """Add a turn: only what was done before its end counts for the rate."""
        in_time = [call for call in calls if call.succeeded and call.done <= until]
        by_thread = dict.fromkeys(range(threads), 0)
        for call in in_time:
            by_thread[call.thread] += 1
        self.calls += calls
        self.rates.append(len(in_time) / (until - began))
        self.shares.append(min(by_thread.values()) * threads / max(len(in_time), 1))

    def row(self) -> list[str]:
        """Return the cells of the table, in the order of ``HEAD``."""
        attempts = sorted(call.attempts for call in self.calls)
        took = sorted(call.took * 1e3 for call in self.calls)
        return [
            f"{statistics.mean(attempts):.2f}",
            *(f"{percentile(attempts, part):.0f}" for part in (50, 99, 100)),
            f"{statistics.median(self.rates):.0f}",
            f"{min(self.rates):.0f}-{max(self.rates):.0f}",
            *(f"{percentile(took, part):.0f}" for part in (50, 99, 100)),
            f"{statistics.median(self.shares):.2f}",
            f"{100 * statistics.mean(count > 5 for count in attempts):.2f} %",
            f"{100 * statistics.mean(not call.succeeded for call in self.calls):.2f} %",
        ]


HEAD = (
    *("attempts: mean", "p50", "p99", "max"),
    *("calls/s", "of rounds"),
    *("ms: p50", "p99", "max"),
    *("least share", "over 5", "gave up"),
)


def percentile(ordered: Sequence[float], part: float) -> float:
    """Return the value that *part* per cent of the sorted values do not exceed."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * part / 100))]


def contend(database: dict[str, Any], number: int, orders: Connection) -> None:
    """Take turns until there are no more; the body of one process."""
    import logging

    import django
    from django.conf import settings

    pool = {"min_size": 8, "max_size": 8}
    if any(option.name == "retry_budget" for option in fields(PoolOptions)):
        # What is compared are the waits, not when a process gives up for other reasons.
        pool["retry_budget"] = 0
    settings.configure(DATABASES={"default": {**database, "OPTIONS": {"pool": pool}}})
    django.setup()
    logging.getLogger("django_pooled").setLevel(logging.ERROR)
    while (turn := orders.recv()) is not None:
        orders.send(take(turn, number))


def take(turn: Turn, process: int) -> list[Call]:
    """Run this process's threads of one turn to their end and return their calls."""
    calls: list[Call] = []
    threads = [
        threading.Thread(target=keep_calling, args=(turn, number, calls))
        for number in range(process, turn.load.threads, PROCESSES)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return calls


def keep_calling(turn: Turn, number: int, calls: list[Call]) -> None:
    """Raise the row by one, over and over; the body of one thread."""
    from django.db import OperationalError, connection

    from django_pooled import retry_transaction

    attempts = 0

    @retry_transaction(
        max_attempts=turn.max_attempts,
        deadline=120.0,
        isolation_level=turn.level,
        backoff=turn.backoff,
    )
    def increment() -> None:
        nonlocal attempts
        attempts += 1
        with connection.cursor() as cursor:
            cursor.execute("SELECT n FROM hot WHERE id = 1")
            (n,) = cursor.fetchone()
            if turn.load.work:
                time.sleep(turn.load.work)
            cursor.execute("UPDATE hot SET n = %s WHERE id = 1", [n + 1])

    while time.monotonic() < turn.until:
        if turn.load.pause:
            time.sleep(random.expovariate(1 / turn.load.pause))
        attempts = 0
        began = time.monotonic()
        try:
            increment()
            succeeded = True
        except OperationalError:
            succeeded = False
        finally:
            # As at the end of a request.
            connection.close()
        done = time.monotonic()
        calls.append(Call(number, done, done - began, attempts, succeeded))


def show(title: str, seen: dict[str, Seen]) -> None:
    """Print one load's table."""
    cells = [["", *HEAD], *([name, *one.row()] for name, one in seen.items())]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    print(f"\n{title}")
    for name, *others in cells:
        shown = [one.rjust(width) for one, width in zip(others, widths[1:], strict=True)]
        print("  ".join([name.ljust(widths[0]), *shown]), flush=True)


def main() -> None:
    """Run the turns and print a table for each load."""
    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.5, help="of one turn")
    parser.add_argument("--max-attempts", type=int, default=500)
    parser.add_argument("--loads", type=int, nargs="+", default=range(len(LOADS)), metavar="NUMBER")
    chosen = parser.parse_args()
    if chosen.quick:
        chosen.rounds, chosen.seconds, chosen.loads = 1, 1.0, [0, 2]
    loads = [(LOADS[number], level) for number in chosen.loads for level in LEVELS]
    seen = {load: {name: Seen() for name in CANDIDATES} for load in loads}
    increments = 0
    with server() as target:
        with connect(**target.parameters(), autocommit=True) as connection:
            connection.execute("CREATE TABLE hot (id int PRIMARY KEY, n int)")
            connection.execute("INSERT INTO hot VALUES (1, 0)")
        database = {"ENGINE": "django_pooled", **target.django_settings()}
        context = multiprocessing.get_context("spawn")
        pipes = []
        for number in range(PROCESSES):
            ours, theirs = context.Pipe()
            context.Process(target=contend, args=(database, number, theirs), daemon=True).start()
            pipes.append(ours)
        for _ in range(chosen.rounds):
            for load, level in loads:
                for name in random.sample(list(CANDIDATES), len(CANDIDATES)):
                    began = time.monotonic()
                    until = began + chosen.seconds
                    turn = Turn(CANDIDATES[name], level, load, chosen.max_attempts, until)
                    for pipe in pipes:
                        pipe.send(turn)
                    calls = [call for pipe in pipes for call in pipe.recv()]
                    seen[load, level][name].add(calls, began, until, load.threads)
                    increments += sum(call.succeeded for call in calls)
        for pipe in pipes:
            pipe.send(None)
        with connect(**target.parameters()) as connection:
            (stored,) = connection.execute("SELECT n FROM hot").fetchall()[0]
    for (load, level), table in seen.items():
        show(f"{level.name.replace('_', ' ')}, {load}", table)
    print(f"\n{increments} calls acknowledged, the row says {stored}")


if __name__ == "__main__":
    main()
