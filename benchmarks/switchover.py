"""A planned change of server under load: poolctl beside native and PgBouncer's PAUSE and RESUME.

    python benchmarks/switchover.py --quick
    python benchmarks/switchover.py --only upgrade

Two changes, each behind one address: a switchover of a Patroni cluster behind HAProxy (on Debian:
apt-get install patroni etcd-server haproxy postgresql), and a new major version, the data dumped
and restored while the address, a forwarded port, refuses. All contestants sit through each change
at the same time, each in a process of its own. Results go to ``results/switchover.md``.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from itertools import pairwise
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Protocol

import psycopg
from _clusters import Probe, cluster
from _common import (
    BENCHMARKS,
    ENGINES,
    EmbeddedServer,
    Engine,
    FaultProxy,
    arguments,
    environment,
    started,
    temporary_folder,
)
from _worker import Write
from versus.outcome import circumstances

from embedded_postgres import all_binaries, free_port
from embedded_postgres.binaries import executable
from tests.servers.pgbouncer import PgBouncer

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

NATIVE, CHECKS, OURS = ENGINES
BOUNCED = Engine("native, PgBouncer's PAUSE and RESUME", NATIVE.settings)
RETRYING = Engine("django_pooled, retry_transaction", OURS.settings)
STEERED = Engine("django_pooled, poolctl switchover", OURS.settings)
COLUMNS = (NATIVE, CHECKS, BOUNCED, OURS, RETRYING, STEERED)
CONNECTIONS = 4
PAUSE = 0.02
"""Seconds between two requests of a thread."""

CALM = 3.0
"""Seconds before a change that the calm is judged by."""

_WHO = """
    SELECT pg_postmaster_start_time(), NOT pg_is_in_recovery()
           AND current_setting('transaction_read_only') = 'off'
"""


class Change(Protocol):
    """A server behind an address, which leads to another one after `make`."""

    title: str
    words: str

    @property
    def address(self) -> dict[str, Any]:
        """The entry for ``DATABASES``."""

    def make(self) -> None:
        """Change the server; it may return before the address leads there."""


class Promoted:
    """A Patroni cluster behind HAProxy."""

    title = "A switchover by Patroni, behind HAProxy"

    def __init__(self, servers: Any) -> None:
        self._servers = servers
        self.words = servers.words
        self.address: dict[str, Any] = servers.addresses

    def make(self) -> None:
        """Have another server take over."""
        self._servers.switchover()

    def mend(self) -> None:
        """Have a standby again."""
        self._servers.mend()


class Upgraded:
    """An old server behind a forwarded port, and a new one with a newer major version."""

    title = "A new major version, behind a forwarded port"

    def __init__(
        self, old: EmbeddedServer, new: EmbeddedServer, port: FaultProxy, words: str
    ) -> None:
        self._old, self._new, self._port = old, new, port
        self._programs = new.binaries
        self.words = words

    @property
    def address(self) -> dict[str, Any]:
        """The forwarded port, with a role that both servers have."""
        return {
            "HOST": self._port.host,
            "PORT": self._port.port,
            "NAME": "postgres",
            "USER": "clerk",
            "PASSWORD": "the same",
            "OPTIONS": {},
        }

    def make(self) -> None:
        """Let nobody in, copy the data, and lead the port to the new server."""
        self._port.down()
        self._port.cut()
        urls = [one.url("postgres") for one in (self._old, self._new)]
        dump = subprocess.Popen(
            [executable(self._programs, "pg_dump"), "--no-owner", urls[0]], stdout=subprocess.PIPE
        )
        subprocess.run(
            [executable(self._programs, "psql"), "-q", "-v", "ON_ERROR_STOP=1", urls[1]],
            stdin=dump.stdout,
            stdout=subprocess.DEVNULL,
            check=True,
        )
        if dump.wait():
            raise RuntimeError("pg_dump failed")
        self._port.retarget(self._new.host, self._new.port)
        self._port.forward()


@contextlib.contextmanager
def promoted(nodes: int) -> Iterator[Promoted]:
    """Start a Patroni cluster."""
    with cluster(nodes=nodes, haproxy=True, by_hand=False) as servers:
        yield Promoted(servers)


@contextlib.contextmanager
def upgraded() -> Iterator[Upgraded]:
    """Start servers of the oldest and the newest version that are here."""
    found = all_binaries()
    oldest, newest = sorted(found, key=int)[0], sorted(found, key=int)[-1]
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(temporary_folder())
        servers = [
            stack.enter_context(
                EmbeddedServer(folder / version, binaries=found[version], durable=False)
            )
            for version in (oldest, newest)
        ]
        for one in servers:
            with psycopg.connect(**one.parameters("postgres"), autocommit=True) as admin:
                admin.execute("CREATE ROLE clerk LOGIN SUPERUSER PASSWORD 'the same'")
        port = FaultProxy(servers[0].host, servers[0].port, listen=free_port())
        words = f"PostgreSQL {oldest} to {newest}, dump and restore"
        yield Upgraded(servers[0], servers[1], stack.enter_context(port), words)


def wait_for_another(probe: Probe, before: object, until: float) -> float:
    """Wait until another server can be written; return when that began."""
    while time.monotonic() < until:
        began = time.monotonic()
        with contextlib.suppress(psycopg.Error):
            [(started_at, writable)] = probe.execute(_WHO)
            if writable and started_at != before:
                return began
        time.sleep(0.02)
    raise RuntimeError("the address does not lead to another server")


@dataclass
class Seen:
    """What one change cost one contestant."""

    failed: int
    served: int
    longest: float
    gap: float
    calm: float


def cost(writes: Sequence[Write], at: float, until: float) -> Seen:
    """Return what a change cost, of the requests from its beginning on."""
    touched = [one for one in writes if one.done >= at and one.began < until]
    good = sorted(one.done for one in touched if one.error is None)
    before = [one.done - one.began for one in writes if at - CALM < one.done < at]
    return Seen(
        len(touched) - len(good),
        len(good),
        max(one.done - one.began for one in touched),
        max(later - sooner for sooner, later in pairwise([at, *good, until])),
        sorted(before)[int(0.99 * len(before))],
    )


@contextlib.contextmanager
def bouncer(address: Mapping[str, Any]) -> Iterator[PgBouncer]:
    """Start PgBouncer before the address."""
    server: Any = SimpleNamespace(
        host=address["HOST"],
        port=address["PORT"],
        user=address["USER"],
        password=f"'{address['PASSWORD']}'",
    )
    with PgBouncer(server, "transaction", default_pool_size=CONNECTIONS) as one:
        yield one


def run(change: Any, rounds: int, threads: int, length: float) -> tuple[list[list[Seen]], str]:
    """Make the change under load; return what it cost each contestant each time."""
    address = change.address
    probe = Probe(address)
    probe.execute("CREATE TABLE request (engine text, key text)")
    pool = {"min_size": CONNECTIONS, "max_size": CONNECTIONS, "timeout": 30.0}
    folder = tempfile.TemporaryDirectory(prefix="stats-", dir="/tmp")
    with folder, bouncer(address) as pgbouncer:
        ours = {"pool": {**pool, "stats_dir": folder.name}}
        steered = {**address, "OPTIONS": ours, "ENGINE": "django_pooled"}
        plain = {**address, "OPTIONS": {"pool": pool}}
        bounced = {
            **plain,
            "HOST": pgbouncer.host,
            "PORT": pgbouncer.port,
            "USER": "postgres",
            "PASSWORD": "",
            "DISABLE_SERVER_SIDE_CURSORS": True,
        }
        databases = [bounced if one is BOUNCED else plain for one in COLUMNS]
        databases[-1] = steered
        with started(zip(COLUMNS, databases, strict=True)) as among:
            for worker in among:
                settings = {"name": worker.name, "pause": PAUSE, "retry": False}
                settings["retry"] = worker.name == RETRYING.name
                worker.call("start_writing", threads=threads, **settings)
            time.sleep(CALM + 10.0)
            spans = []
            for number in range(rounds):
                spans.append(once(change, probe, pgbouncer, steered, length))
                if number + 1 < rounds:
                    change.mend()
                    time.sleep(2.0)
            for worker in among:
                worker.send("finish")
            seen = [[Write(*one) for one in worker.answer()] for worker in among]
        rows = probe.execute("SELECT engine, key FROM request")
        machine = circumstances(probe.parameters)
    found = [[cost(writes, *span) for span in spans] for writes in seen]
    for column, writes in zip(COLUMNS, seen, strict=True):
        stored = {key for engine, key in rows if engine == column.name}
        lost = {one.key for one in writes if one.error is None} - stored
        errors = sorted({one.error for one in writes if one.error is not None})
        print(f"{column.name}: errors {errors}, acknowledged and lost: {len(lost)}", flush=True)
    return found, "\n".join(f"| {key} | {value} |" for key, value in machine.items())


def once(
    change: Any, probe: Probe, pgbouncer: PgBouncer, database: dict[str, Any], length: float
) -> tuple[float, float]:
    """Make the change once, by poolctl; return from when until when to look."""
    [(before, _)] = probe.execute(_WHO)
    at = time.monotonic()
    operator = subprocess.Popen(
        [sys.executable, str(BENCHMARKS / "_poolctl.py"), "switchover"],
        env=environment(database, PYTHONUNBUFFERED="1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert operator.stdout is not None
    for line in operator.stdout:
        print(f"  poolctl: {line}", end="", flush=True)
        if "Switch the server over now" in line:
            break
    else:
        raise RuntimeError("poolctl ended before the change")
    pgbouncer.console("PAUSE")
    began = time.monotonic()
    doing = threading.Thread(target=change.make)
    doing.start()
    back = wait_for_another(probe, before, began + 60.0)
    pgbouncer.console("RESUME")
    print(f"  the address could be written after {back - began:.2f} s", flush=True)
    output, _ = operator.communicate(timeout=90)
    print("".join(f"  poolctl: {line}\n" for line in output.splitlines()), end="", flush=True)
    doing.join()
    time.sleep(length)
    return at, time.monotonic()


def table(found: Sequence[Sequence[Seen]]) -> list[str]:
    """Return the rows of Markdown: a line for each contestant, its worst times, its sums."""
    lines = [
        "| | failed requests | longest answer | longest time without an answer | p99 before |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for column, seen in zip(COLUMNS, found, strict=True):
        failed, served = sum(one.failed for one in seen), sum(one.served for one in seen)
        longest = ", ".join(f"{one.longest:.2f} s" for one in seen)
        gap = ", ".join(f"{one.gap:.2f} s" for one in seen)
        calm = max(one.calm for one in seen) * 1e3
        lines.append(
            f"| {column.name} | {failed} of {failed + served} | {longest} | {gap} | {calm:.0f} ms |"
        )
    return lines


def main() -> None:
    """Make both changes, print what they cost, and write the results."""
    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="Patroni switchovers")
    parser.add_argument("--threads", type=int, default=6, help="of each contestant")
    parser.add_argument("--nodes", type=int, default=2, help="PostgreSQL servers under Patroni")
    parser.add_argument("--seconds", type=float, default=15.0, help="of load after each change")
    parser.add_argument("--only", choices=("patroni", "upgrade"), help="one of the two")
    chosen = parser.parse_args()
    if chosen.quick:
        chosen.rounds, chosen.seconds = 1, 8.0
    # So that whatever ends this process ends what it has started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    text = ["# A planned change of server", "", EXPLAINED.format(chosen.threads, CONNECTIONS)]
    machine = ""
    for name, opened, rounds in (
        ("patroni", promoted(chosen.nodes), chosen.rounds),
        ("upgrade", upgraded(), 1),
    ):
        if chosen.only not in (None, name):
            continue
        with opened as change:
            print(f"{change.title}: {change.words}", flush=True)
            found, machine = run(change, rounds, chosen.threads, chosen.seconds)
            part = [f"## {change.title}", "", f"{change.words}; {rounds} times.", "", *table(found)]
        print("\n".join(part), flush=True)
        text += ["", *part]
    if chosen.quick or chosen.only:
        return
    text += ["", "| circumstances | |", "|---|---|", machine, ""]
    results = BENCHMARKS / "results" / "switchover.md"
    results.write_text("\n".join(text))
    print(f"\nwritten: {results}")


EXPLAINED = """Written by `python benchmarks/switchover.py`. All contestants sit through the same
changes at the same time, each with {} threads that insert a row and wait for 20 ms, and {}
connections. One order of `poolctl switchover` begins each change. PgBouncer (transaction mode,
before the same address) is paused at the same moment, and resumed as soon as a new connection to
the address can write. A request counts as failed if it raised an error: the others have nobody who
pauses them. Times of several changes stand one after another."""


if __name__ == "__main__":
    main()
