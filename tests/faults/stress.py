"""Many threads on small pools while sessions are killed, pools closed, processes forked, all read.

    python -m tests.faults.stress --cycles 200000
    python -m tests.faults.stress --cycles 200000 --lanes

It prints what was done and what was wrong, and its exit status is 1 if anything was. It ends when
the cycles are done: no time decides.
"""

from __future__ import annotations

import argparse
import faulthandler
import gc
import json
import os
import random
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from django_pooled.pool.lanes import LANES
from tests.support.forking import fork

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tests.faults.stress_pools import WatchedPool

DATABASE = "STRESS_DATABASE"
"""The environment's variable with HOST, PORT, USER, PASSWORD and NAME of a database, as JSON;
without it, a server is started."""

PATIENCE = 120.0
"""Seconds after which a thread or a process hangs."""


class Stress:
    """One run.

    Args:
        database: An entry of ``DATABASES`` without its options.
        threads: As many use each pool.
        folder: Where the process publishes its pools.
        seed: Of what is chosen at random.
        lanes: Whether the pools have lanes, a bound on the delay, and connections that live for
            half a second, which are replaced ahead and pinged.
    """

    def __init__(
        self, database: dict[str, Any], threads: int, folder: str, seed: int, *, lanes: bool
    ) -> None:
        self._database = database
        self._lanes = lanes
        self._threads = threads
        self._folder = folder
        self._seed = seed
        self._lock = threading.Lock()
        """Guards what follows, but for the numbers of cycles: each thread has its own."""
        self.done: Counter[str] = Counter()
        self.wrong: Counter[str] = Counter()
        self.examples: dict[str, str] = {}
        self._cycles: list[int] = []
        self._held: dict[WatchedPool, Counter[str]] = {}
        """At least so many connections each lane has."""

    def count(self, what: str) -> None:
        """Count something that may happen."""
        with self._lock:
            self.done[what] += 1

    def complain(self, what: str, example: str) -> None:
        """Count something that must not happen, and keep the first of each kind."""
        with self._lock:
            self.wrong[what] += 1
            self.examples.setdefault(what, example)

    def guarded(self, action: Callable[[], object]) -> None:
        """Do something that must not raise."""
        try:
            action()
        except BaseException as error:
            lines = traceback.extract_tb(error.__traceback__)
            where = " < ".join(f"{line.filename}:{line.lineno}" for line in lines[:-4:-1])
            self.complain(f"{type(error).__name__} at {where}", str(error))

    def make(self, alias: str, max_size: int) -> None:
        """Make an alias with a pool of its own."""
        from django.db import connections

        pool: dict[str, Any] = {
            "max_size": max_size,
            "min_size": 0,
            "timeout": PATIENCE,
            "stats_dir": self._folder,
            "show_statements": True,
        }
        if self._lanes:
            pool |= {
                "lanes": _lanes_of(max_size),
                "queue_target": 0.02,
                "queue_interval": 0.2,
                "max_lifetime": 0.5,
                "keepalive": 0.1,
            }
        connections.settings[alias] = {
            **connections.settings["default"],
            **self._database,
            "OPTIONS": {"pool": pool},
        }

    def start(self, number: int) -> None:
        """Have all threads make the first query of a process together."""
        from django.db import connections
        from django.db.backends.postgresql import psycopg_any

        from django_pooled.pool import registry
        from tests.faults.stress_pools import WatchedPool

        alias = f"start_{number}"
        self.make(alias, 2)
        psycopg_any.get_adapters_template.cache_clear()  # type: ignore[attr-defined]
        together, before = threading.Barrier(self._threads), len(WatchedPool.made)

        def first() -> None:
            together.wait(PATIENCE)
            with connections[alias].cursor() as cursor:
                cursor.execute("SELECT 1")
            connections[alias].close()

        self._all([partial(self.guarded, first)] * self._threads)
        self.count("starts")
        if (made := len(WatchedPool.made) - before) != 1:
            self.complain("more than one pool for one database", f"{made} of {alias}")
        registry.close_pools_of(alias)

    def round(self, max_size: int, cycles: int) -> None:
        """Have the threads work on one pool."""
        from django_pooled.pool import registry
        from tests.faults.stress_pools import WatchedPool, complaints_at_rest

        alias = f"size_{max_size}"
        self.make(alias, max_size)
        first, checkouts = len(WatchedPool.made), WatchedPool.checkouts
        share = cycles // self._threads
        self._cycles = [0] * self._threads
        workers = [
            threading.Thread(target=self.guarded, args=(partial(self._work, alias, each, share),))
            for each in range(self._threads)
        ]
        for worker in workers:
            worker.start()
        self._direct(alias, workers, share * self._threads)
        gc.collect()
        registry.close_pools_of(alias)
        pools = WatchedPool.made[first:]
        # What was dropped or interrupted comes back by threads of the pool.
        deadline = time.monotonic() + PATIENCE
        while any(map(complaints_at_rest, pools)) and time.monotonic() < deadline:
            time.sleep(0.01)
        for pool in pools:
            self._judge(complaints_at_rest(pool))
        counted = sum(pool.snapshot().counters.checkouts for pool in pools)
        told = WatchedPool.checkouts - checkouts
        if counted != told:
            self.complain("not each checkout is counted", f"{alias}: {counted} of {told}")
        self.done["cycles"] += share * self._threads
        self.done["checkouts"] += counted
        self.done["pools"] += len(pools)
        self.done["expired"] += sum(pool.snapshot().counters.closed["lifetime"] for pool in pools)

    def _work(self, alias: str, number: int, cycles: int) -> None:
        from django.db import Error, connections

        from django_pooled import lane
        from django_pooled.errors import CheckoutTimeout, PoolExhausted

        chance = random.Random(f"{self._seed} {alias} {number}")
        for _ in range(cycles):
            name = chance.choice(LANES)
            try:
                with lane(name):
                    self._cycle(alias, chance.random(), name)
            except (CheckoutTimeout, PoolExhausted) as error:
                if self._lanes and getattr(error, "limit", "") == "queue_target":
                    self.count("refusals")
                    continue
                self.complain(f"{type(error).__name__} of a checkout", str(error))
            except Error as error:
                self.count(f"{type(error).__name__}")
            finally:
                with suppress(Error):
                    connections[alias].close()
                self._cycles[number] += 1
        del connections[alias]

    def _cycle(self, alias: str, chance: float, lane: str) -> None:
        from django.db import DataError, connections, transaction

        wrapper = connections[alias]
        if chance < 0.9 and not self._lanes:
            self._ask(wrapper, "SELECT 1")
        elif chance < 0.94:
            with transaction.atomic(using=alias):
                self._ask(wrapper, "SELECT 2")
                with self._holding(wrapper, lane):
                    self._ask(wrapper, "SELECT 3")
        elif chance < 0.96:
            with suppress(DataError):
                self._ask(wrapper, "SELECT 1 / 0")
        elif chance < 0.98:
            self._ask(wrapper, "SET statement_timeout = 60000")
        elif chance < 0.99:
            self._ask(wrapper, "SELECT pg_sleep(0.001)")
        elif chance < 0.9995:
            self._ask(wrapper, "SELECT pg_terminate_backend(pg_backend_pid())")
        else:
            # Dropped with its connection, which nothing gives back.
            self._ask(wrapper, "SELECT 4")
            del connections[alias]

    @contextmanager
    def _holding(self, wrapper: Any, lane: str) -> Iterator[None]:
        """Count the connection of a transaction for its lane, and judge the limits of all."""
        from tests.faults.stress_pools import WatchedPool

        with WatchedPool.lock:
            pool = WatchedPool.owners.get(id(wrapper.connection.pgconn))
        if pool is None or not self._lanes:
            # Killed and closed meanwhile.
            yield
            return
        with self._lock:
            held = self._held.setdefault(pool, Counter())
            held[lane] += 1
            max_size = pool.options.max_size
            limits = _lanes_of(max_size)
            seen = f"{dict(held)} of {max_size}"
            kept = sum(max(0, limits[each].get("reserved", 0) - held[each]) for each in limits)
            wrong = {
                "a lane beyond its max": held[lane] > limits.get(lane, {}).get("max", max_size),
                "what is reserved is taken": held.total() + kept > max_size,
            }
        for what, is_so in wrong.items():
            if is_so:
                self.complain(what, seen)
        try:
            yield
        finally:
            with self._lock:
                held[lane] -= 1

    def _ask(self, wrapper: Any, statement: str) -> None:
        with wrapper.cursor() as cursor:
            cursor.execute(statement)

    def _direct(self, alias: str, workers: Sequence[threading.Thread], cycles: int) -> None:
        """Kill, close and fork as the work goes on, until it is done."""
        import psycopg

        from django_pooled.pool import registry

        parameters = {
            key: self._database[name]
            for key, name in (("host", "HOST"), ("port", "PORT"), ("user", "USER"))
        }
        parameters |= {"password": self._database["PASSWORD"], "dbname": self._database["NAME"]}
        admin = psycopg.connect(**parameters, autocommit=True)
        chance, children = random.Random(f"{self._seed} {alias}"), []

        def kill() -> None:
            admin.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE application_name LIKE %s ORDER BY random() LIMIT 1",
                [f"django {os.getpid()}@%"],
            )

        actions: dict[str, tuple[int, Callable[[], object]]] = {
            "kills": (cycles // 100, kill),
            "closes": (cycles // 2500, lambda: registry.close_pools_of(alias)),
            "forks": (max(1, cycles // 5000), lambda: children.append(self._fork(alias))),
        }
        due = sorted(
            (chance.randrange(cycles), kind)
            for kind, (number, _) in actions.items()
            for _ in range(number)
        )
        readers = self._readers()
        done = 0
        while due and done < cycles:
            done = sum(self._cycles)
            while due and due[0][0] <= done:
                _, kind = due.pop(0)
                self.guarded(actions[kind][1])
                self.count(kind)
            time.sleep(0.001)
        self._join(workers)
        readers()
        admin.close()
        for child in children:
            self._reap(child)

    def _readers(self) -> Callable[[], None]:
        """Start three readers: as poolstats, the metrics and the page; return what ends them."""
        from django_pooled.dashboard import figures, watch
        from django_pooled.metrics.site import own_pools
        from django_pooled.poolstats.processes.collect import collect_all
        from tests.faults.stress_pools import complaints_about

        over = threading.Event()

        def read(look: Callable[[], list[Any]]) -> None:
            def judge() -> None:
                for pool in look():
                    self._judge(complaints_about(pool, have_limits=self._lanes))

            while not over.is_set():
                self.guarded(judge)
                self.count("snapshots")
                over.wait(0.002)

        def poolstats() -> list[Any]:
            reports = collect_all([self._folder], 5.0, uid=os.geteuid()).reports
            return [pool for report in reports for pool in report.pools]

        def metrics() -> list[Any]:
            return [row.pool for row in own_pools()]

        def page() -> list[Any]:
            seen = watch.snapshot()
            figures.content(seen)
            return [row.pool for group in seen.overview.groups for row in group.rows]

        looks = (poolstats, metrics, page)
        threads = [threading.Thread(target=read, args=(look,)) for look in looks]
        for thread in threads:
            thread.start()

        def end() -> None:
            over.set()
            self._join(threads)

        return end

    def _judge(self, complaints: list[tuple[str, str]]) -> None:
        for what, example in complaints:
            self.complain(what, example)

    def _fork(self, alias: str) -> int:
        child = fork()
        if child:
            return child
        status = 1
        try:
            faulthandler.dump_traceback_later(PATIENCE / 2, exit=True)
            status = self._in_child(alias)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)

    def _in_child(self, alias: str) -> int:
        """Query in two threads of a forked process; return 0 if all of it is its own."""
        from django.db import connections

        from tests.faults.stress_pools import WatchedPool

        together, found = threading.Barrier(2), []

        def query() -> None:
            together.wait(PATIENCE)
            with connections[alias].cursor() as cursor:
                cursor.execute("SELECT current_setting('application_name')")
                found.append(cursor.fetchone()[0].partition("@")[0])
            connections[alias].close()

        self._all([query] * 2)
        own = [f"django {os.getpid()}"] * 2
        if found == own and len(WatchedPool.made) == 1:
            return 0
        print(f"child: {found}, {len(WatchedPool.made)} pools", file=sys.stderr)
        return 1

    def _reap(self, child: int) -> None:
        _, status = os.waitpid(child, 0)
        if status != 0:
            self.complain("a forked process failed", f"status {os.waitstatus_to_exitcode(status)}")

    def _all(self, actions: Sequence[Callable[[], object]]) -> None:
        threads = [threading.Thread(target=action) for action in actions]
        for thread in threads:
            thread.start()
        self._join(threads)

    def _join(self, threads: Sequence[threading.Thread]) -> None:
        for thread in threads:
            while thread.is_alive():
                before = sum(self._cycles)
                thread.join(PATIENCE)
                if thread.is_alive() and sum(self._cycles) == before:
                    faulthandler.dump_traceback(all_threads=True)
                    raise SystemExit(f"{thread.name} hangs")


def _lanes_of(max_size: int) -> dict[str, dict[str, int]]:
    """Return the limits of the lanes of a pool."""
    reserved = {"admin": {"reserved": 1}} if max_size > 1 else {}
    return {**reserved, "task": {"max": (max_size + 1) // 2}}


def run(options: argparse.Namespace, database: dict[str, Any]) -> int:
    """Run all of it; return the exit status."""
    import django
    from django.conf import settings

    settings.configure(
        DATABASES={"default": {"ENGINE": "django_pooled", **database}},
        INSTALLED_APPS=["django_pooled", "django_pooled.dashboard"],
        USE_TZ=True,
    )
    django.setup()
    from django_pooled.pool import upkeep
    from tests.faults import stress_pools

    stress_pools.watch()
    if options.lanes:
        # Sessions are killed before they have lived for seconds.
        upkeep.SOONEST, upkeep.SHARE = 0.01, 0.5
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="stress-", dir="/tmp") as folder:
        stress = Stress(database, options.threads, folder, options.seed, lanes=options.lanes)
        for number in range(options.starts):
            stress.start(number)
        for max_size in range(1, 9):
            stress.round(max_size, options.cycles // 8)
    seconds = time.monotonic() - began
    gil = getattr(sys, "_is_gil_enabled", lambda: True)()
    print(
        f"Python {sys.version.split()[0]} {'with' if gil else 'without'} the GIL, "
        f"switch interval {sys.getswitchinterval():g} s, {options.threads} threads, "
        f"seed {options.seed}: {seconds:.1f} s"
    )
    for what, number in sorted(stress.done.items()):
        print(f"{number:8} {what}")
    print(f"{sum(stress.wrong.values()):8} wrong")
    for what, number in stress.wrong.most_common():
        print(f"{number:12} {what}; first: {stress.examples[what]}")
    return 1 if stress.wrong else 0


def main() -> int:
    """Run it on the database of the environment, or on a server of its own."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cycles", type=int, default=200_000, help="checkout, statement, checkin")
    parser.add_argument("--starts", type=int, default=40, help="of a process: one pool each")
    parser.add_argument("--threads", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lanes", action="store_true", help="and short lives")
    parser.add_argument("--switch-interval", type=float, help="seconds; 1e-6 to find races")
    options = parser.parse_args()
    faulthandler.enable()
    if options.switch_interval is not None:
        sys.setswitchinterval(options.switch_interval)
    if DATABASE in os.environ:
        return run(options, json.loads(os.environ[DATABASE]))
    from tests.servers.postgresql import Servers

    servers = Servers()
    try:
        server = servers.make()
        server.start()
        return run(options, server.django_settings())
    finally:
        servers.close()


if __name__ == "__main__":
    sys.exit(main())
