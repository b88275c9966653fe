"""Switchover and failover under load: requests failed and seconds lost, native beside ours.

    python benchmarks/failover.py --quick
    python benchmarks/failover.py --by-hand    # a standby made by hand, without Patroni
    python benchmarks/failover.py --haproxy    # one address instead of several in HOST

With Patroni and etcd, if they are installed; on Debian: apt-get install patroni etcd-server
postgresql. They need not run as services: all that is started here has its own ports on 127.0.0.1
and a temporary folder, and is ended.

All engines sit through the same events at the same time, each in a process of its own, with
several hosts in HOST and target_session_attrs=read-write. Replication is synchronous, so that a
row that was acknowledged and is missing afterwards was lost by the client's side. Times are
median / worst of the repetitions; counts are totals.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import psycopg
from _background import Background
from _clusters import Probe, cluster
from _common import ENGINES, Engine, arguments, started
from _tables import Figures, seconds, total
from _worker import Write

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from _clusters import Cluster

RETRYING = Engine("with retry_transaction", ENGINES[-1].settings)
"""django_pooled once more, with its decorator instead of ``atomic``."""
COLUMNS = (*ENGINES, RETRYING)
CONNECTIONS = 4
PAUSE = 0.02
"""Seconds between two requests of a thread."""


class Observer(Background):
    """Asks again and again, with a new connection each time, whether the cluster can write."""

    def __init__(self, addresses: dict[str, Any]) -> None:
        super().__init__()
        self.execute = Probe(addresses).execute
        self.execute("CREATE TABLE request (engine text, key text)")
        self.execute("CREATE TABLE observed (at timestamptz DEFAULT now())")
        self.wrote: list[float] = []

    def _run(self) -> None:
        while not self._end.wait(0.05):
            with contextlib.suppress(psycopg.Error):
                self.execute("INSERT INTO observed DEFAULT VALUES")
                self.wrote.append(time.monotonic())


@dataclass
class Event:
    """What was caused, when, and until when it was looked at what came of it."""

    name: str
    at: float
    until: float

    def away(self, observed: Sequence[float]) -> tuple[float, float]:
        """Return the last write by a new connection before the longest gap, and the next."""
        within = [instant for instant in observed if self.at - 1 < instant < self.until]
        return max(pairwise([self.at - 1, *within, self.until]), key=lambda pair: pair[1] - pair[0])

    def cost(self, writes: Sequence[Write], back: float) -> dict[str, float | None]:
        """Return what it cost one engine.

        Args:
            writes: all of the engine's.
            back: when a new connection could write again.
        """
        touched = [one for one in writes if one.done >= self.at and one.began < self.until]
        good = sorted(one.done for one in touched if one.error is None)
        after = [instant for instant in good if instant >= back]
        gaps = [later - sooner for sooner, later in pairwise([self.at, *good, self.until])]
        return {
            "failed": len(touched) - len(good),
            "served": len(good),
            "longest time without a success": max(gaps),
            "first success after such a write": after[0] - back if after else None,
            "slowest request": max(one.done - one.began for one in touched),
        }


def cause(servers: Cluster, rounds: int, length: float) -> list[Event]:
    """Cause both events that many times, each followed by that many seconds of load."""
    events = []
    for _ in range(rounds):
        for do in (servers.switchover, servers.failover):
            at = time.monotonic()
            do()
            time.sleep(length)
            events.append(Event(do.__name__, at, time.monotonic()))
            # The servers' own repair is not measured.
            servers.mend()
            time.sleep(2.0)
    return events


def stored(writes: Sequence[Write], rows: Mapping[str, int]) -> dict[str, float]:
    """Compare what one engine was told with its rows, counted by their keys."""
    acknowledged = {one.key for one in writes if one.error is None}
    failed = {one.key for one in writes if one.error is not None}
    return {
        "acknowledged": len(acknowledged),
        "acknowledged, not stored": len(acknowledged - rows.keys()),
        "stored twice": sum(count > 1 for count in rows.values()),
        "failed, yet stored": len(failed & rows.keys()),
    }


def report_events(
    events: Sequence[Event], observed: Sequence[float], seen: Sequence[Sequence[Write]]
) -> None:
    """Print a table for each kind of event."""
    for name in dict.fromkeys(event.name for event in events):
        among = [event for event in events if event.name == name]
        figures = Figures(f"{name}, {len(among)} times", COLUMNS)
        for event in among:
            last, back = event.away(observed)
            figures.note("no write by new connections", [back - last] * len(seen), seconds)
            costs = [event.cost(writes, back) for writes in seen]
            for row in costs[0]:
                show = total if row in ("failed", "served") else seconds
                figures.note(row, [cost[row] for cost in costs], show)
        figures.print()


def report_rows(rows: Sequence[tuple[Any, ...]], seen: Sequence[Sequence[Write]]) -> None:
    """Print which errors there were, and what became of all the rows."""
    figures = Figures("All of the run", COLUMNS)
    comparison = []
    for writes, column in zip(seen, COLUMNS, strict=True):
        errors = Counter(one.error for one in writes if one.error is not None)
        print(f"{column.name}: {dict(errors)}")
        found = {key: count for name, key, count in rows if name == column.name}
        comparison.append(stored(writes, found))
    for row in comparison[0]:
        figures.note(row, [one[row] for one in comparison], total)
    figures.print()


def main() -> None:
    """Cause both events under load, and print what they cost."""
    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=2, help="times that each event is caused")
    parser.add_argument("--threads", type=int, default=6, help="of each engine")
    parser.add_argument("--nodes", type=int, default=3, help="PostgreSQL servers under Patroni")
    parser.add_argument("--seconds", type=float, default=40.0, help="of load after each event")
    parser.add_argument("--by-hand", action="store_true", help="leave Patroni out")
    parser.add_argument("--haproxy", action="store_true", help="one address, which HAProxy leads")
    chosen = parser.parse_args()
    if chosen.quick:
        chosen.rounds, chosen.nodes, chosen.seconds = 1, 2, 25.0
    # So that whatever ends this process ends what it has started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    pool = {"min_size": CONNECTIONS, "max_size": CONNECTIONS}
    with cluster(nodes=chosen.nodes, haproxy=chosen.haproxy, by_hand=chosen.by_hand) as servers:
        addresses = servers.addresses
        database = {**addresses, "OPTIONS": {**addresses["OPTIONS"], "pool": pool}}
        with (
            Observer(addresses) as observer,
            started((engine, database) for engine in COLUMNS) as among,
        ):
            for worker in among:
                retry = worker.name == RETRYING.name
                settings = {"name": worker.name, "pause": PAUSE, "retry": retry}
                worker.call("start_writing", threads=chosen.threads, **settings)
            time.sleep(5.0)
            events = cause(servers, chosen.rounds, chosen.seconds)
            for worker in among:
                worker.send("finish")
            seen = [[Write(*one) for one in worker.answer()] for worker in among]
            rows = observer.execute("SELECT engine, key, count(*) FROM request GROUP BY 1, 2")
    print(f"{servers.words}; {chosen.threads} threads, {CONNECTIONS} connections each")
    report_events(events, observer.wrote, seen)
    report_rows(rows, seen)


if __name__ == "__main__":
    main()
