"""How soon those who wait learn why the server refuses them: native beside ours.

    python benchmarks/refusals.py --quick
    DJANGO_POOLED_POSTGRES_BIN=/usr/lib/postgresql/15/bin python benchmarks/refusals.py

For each cause, threads come to an empty pool, go on asking, and are still asking when the cause
is mended on the server. The engines do it at the same time, each in a process of its own, but
come half a second after one another. Times are median / worst of the repetitions; counts are
totals. The exit code is 0 if every waiter of ours had the server's own words in time, else 1.

A server without TLS support, such as the wheel's, cannot be taught TLS: name one that has it.
"""

from __future__ import annotations

import contextlib
import os
import struct
import subprocess
import sys
import time
import zoneinfo
from dataclasses import dataclass, field, replace
from statistics import median
from typing import TYPE_CHECKING, Any

import psycopg
from _common import ENGINES, Engine, arguments, requests, server, temporary_folder, workers
from _tables import Figures, milliseconds, seconds, total

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from _common import EmbeddedServer, Worker
    from _worker import Request

    Statements = tuple[str, ...]

BAR = 0.1
"""Seconds after the server's answer in which every waiter of ours has to have its error."""
APART = 0.5
"""Seconds between two engines, so that one's burst does not disturb the other's."""
PROBER = Engine("prober", ENGINES[0].settings)
"""Belongs to no column: finds out when the cause is there, and when it is mended."""
QUERY = "SELECT 1"
MARS = "Mars/Olympus"
VISITOR = {"USER": "visitor", "PASSWORD": "right"}
RELOAD = "SELECT pg_reload_conf()"
BEYOND = "slowest waiter, beyond that"
UNTOLD = "errors without the server's words"
SHOWN = {UNTOLD: total, "served again after": seconds}


@dataclass(frozen=True)
class Cause:
    """Why a server refuses a connection."""

    name: str
    words: str
    """The server's own, or libpq's."""
    settings: dict[str, Any] = field(default_factory=dict)
    """What differs from the server's own entry for ``DATABASES``."""
    options: dict[str, Any] = field(default_factory=dict)
    """Its ``OPTIONS``."""
    bring_about: Statements = ()
    mend: Statements = ()
    """What an operator does about it; nothing where that cannot be done on the server."""


CAUSES = (
    Cause(
        "wrong password",
        'password authentication failed for user "visitor"',
        VISITOR,
        bring_about=("ALTER ROLE visitor PASSWORD 'wrong'",),
        mend=("ALTER ROLE visitor PASSWORD 'right'",),
    ),
    Cause(
        "unknown database",
        'database "missing" does not exist',
        {"NAME": "missing"},
        bring_about=("DROP DATABASE IF EXISTS missing WITH (FORCE)",),
        mend=("CREATE DATABASE missing",),
    ),
    Cause(
        # One that has to give a password is only told that it is wrong.
        "unknown role",
        'role "ghost" does not exist',
        {"USER": "ghost"},
        bring_about=("DROP ROLE IF EXISTS ghost",),
        mend=("CREATE ROLE ghost LOGIN",),
    ),
    Cause(
        "no pg_hba entry",
        'no pg_hba.conf entry for host "127.0.0.1", user "visitor"',
        VISITOR,
        bring_about=("REVOKE welcome FROM visitor",),
        mend=("GRANT welcome TO visitor",),
    ),
    Cause(
        # Django's own pool is not served with a good one either: to quote the role, a new
        # connection's configuration asks the same pool for another connection.
        "bad assume_role",
        'role "actor" does not exist',
        options={"assume_role": "actor"},
        bring_about=("DROP ROLE IF EXISTS actor",),
        mend=("CREATE ROLE actor",),
    ),
    Cause(
        "bad time zone",
        'invalid value for parameter "TimeZone": "Mars/Olympus"',
        {"TIME_ZONE": MARS},
    ),
    Cause(
        "TLS refused",
        "server does not support SSL, but SSL was required",
        options={"sslmode": "require"},
        bring_about=("ALTER SYSTEM SET ssl = off", RELOAD),
        mend=("ALTER SYSTEM SET ssl = on", RELOAD),
    ),
)


@contextlib.contextmanager
def operator(one: EmbeddedServer) -> Iterator[Callable[[Statements], None]]:
    """Make the roles and who may log in; yields what executes an operator's statements."""
    (one.data / "pg_hba.conf").write_text(
        "host all postgres,+welcome 127.0.0.1/32 scram-sha-256\nhost all ghost 127.0.0.1/32 trust\n"
    )
    with psycopg.connect(**one.parameters(), autocommit=True) as connection:

        def execute(statements: Statements) -> None:
            for statement in statements:
                connection.execute(statement)

        execute(("CREATE ROLE welcome", "CREATE ROLE visitor LOGIN PASSWORD 'right'"))
        execute(("GRANT welcome TO visitor", RELOAD))
        yield execute


def can_do_tls(one: EmbeddedServer) -> bool:
    """Tell whether the server was built with TLS; if so, give it a certificate."""
    with psycopg.connect(**one.parameters()) as connection:
        if connection.execute("SHOW ssl_library").fetchone() == ("",):
            return False
    certificate, key = one.data / "server.crt", one.data / "server.key"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost"]
    command += [f"-out={certificate}", f"-keyout={key}"]
    subprocess.run(command, check=True, capture_output=True)
    owner = one.data.stat()
    for path in (certificate, key):
        os.chown(path, owner.st_uid, owner.st_gid)
    return True


def discover_mars(folder: Path) -> None:
    """Make a time zone known to the engines' processes, which Django demands, and to no server."""
    path = folder / MARS
    path.parent.mkdir()
    counts, utc = (0, 0, 0, 0, 1, 4), (0, 0, 0)
    # One type of local time, and no transitions: https://www.rfc-editor.org/rfc/rfc8536
    path.write_bytes(struct.pack(">4s16x6LlBB4s", b"TZif", *counts, *utc, b"UTC"))
    os.environ["PYTHONTZPATH"] = os.pathsep.join([str(folder), *zoneinfo.TZPATH])


def until(prober: Worker, said: Callable[[str], bool]) -> float:
    """Connect until the error's words are such; returns when that attempt began."""
    give_up = time.monotonic() + 10.0
    while (began := time.monotonic()) < give_up:
        [(_, words)] = prober.call("unpooled")
        if said(words):
            return began
        time.sleep(0.002)
    raise RuntimeError(f"the server says {words!r}")


def until_served(among: Sequence[Worker], since: float, patience: float) -> None:
    """Wait until each has served a request, or for so long; whoever has needs no more."""
    waiting = list(among)
    while waiting and time.monotonic() < since + patience:
        time.sleep(0.02)
        served = [worker for worker in waiting if worker.call("served", since=since)]
        for worker in served:
            worker.call("stop")
        waiting = [worker for worker in waiting if worker not in served]


def refuse(
    cause: Cause,
    among: Sequence[Worker],
    prober: Worker,
    execute: Callable[[Statements], None],
    chosen: argparse.Namespace,
) -> list[dict[str, float | None]]:
    """Let the server refuse all engines for that cause, and mend it; returns their figures."""
    execute(cause.bring_about)
    until(prober, lambda words: cause.words in words)
    alone = [median(worker.call("unpooled")[0][0] for _ in range(3)) for worker in among]
    crowds = [worker.call("unpooled", threads=chosen.waiters) for worker in among]
    # Each comes to a pool that does not exist yet.
    for worker in among:
        worker.send("burst", threads=chosen.waiters, query=QUERY)
        time.sleep(APART)
    bursts = [requests(worker.answer()) for worker in among]
    for worker in among:
        worker.call("start", threads=chosen.waiters, query=QUERY, pause=0.05)
    time.sleep(chosen.timeout + 1.0)
    mended = time.monotonic()
    if cause.mend:
        execute(cause.mend)
        mended = until(prober, lambda words: not words)
        until_served(among, mended, chosen.patience)
    seen = [requests(worker.call("finish")) for worker in among]
    for worker in among:
        worker.call("close_pool")
    return [
        {
            "one refused connect": connect,
            "as many at once without a pool, beyond that": max(took for took, _ in crowd) - connect,
            **figures_of(cause, connect, burst, later, mended),
        }
        for connect, crowd, burst, later in zip(alone, crowds, bursts, seen, strict=True)
    ]


def figures_of(
    cause: Cause,
    connect: float,
    burst: Sequence[Request],
    seen: Sequence[Request],
    mended: float,
) -> dict[str, float | None]:
    """Return one engine's figures: of its first waiters, and of what it saw after them."""
    # One that was served is the first after the cause was mended, if only by a moment.
    later = [request for request in seen if request.error is not None and request.done < mended]
    untold = [one for one in (*burst, *later) if cause.words not in one.said]
    found: dict[str, float | None] = {
        BEYOND: max(one.done for one in burst) - min(one.asked for one in burst) - connect,
        "slowest later checkout": max(request.took for request in later),
        UNTOLD: len(untold),
    }
    if cause.mend:
        served = [one.done for one in seen if one.error is None and one.done >= mended]
        found["served again after"] = min(served) - mended if served else None
    return found


def main() -> int:
    """Run it and print the table; returns the exit code."""
    parser = arguments(__doc__)
    parser.add_argument("--waiters", type=int, default=10)
    parser.add_argument("--timeout", type=float, default=5.0, help="of the pools, in seconds")
    parser.add_argument("--patience", type=float, default=30.0, help="for recovery, in seconds")
    parser.add_argument("--repeat", type=int, default=3)
    chosen = parser.parse_args()
    if chosen.quick:
        chosen.repeat, chosen.timeout, chosen.patience = 1, 1.0, 10.0
    figures = Figures(
        f"{chosen.waiters} waiters on an empty pool, timeout {chosen.timeout:g} s, "
        f"{chosen.repeat} times; never is not within {chosen.patience:g} s"
    )
    wrong = []
    with temporary_folder() as folder, server() as one, operator(one) as execute:
        discover_mars(folder)
        tls = can_do_tls(one)
        for cause in CAUSES:
            if "sslmode" in cause.options and not tls:
                cause = replace(cause, bring_about=(), mend=())
            pool = {"timeout": chosen.timeout}
            engines = (*ENGINES, PROBER)
            with workers(one, one, pool, cause.options, engines, **cause.settings) as among:
                *among, prober = among
                for _ in range(chosen.repeat):
                    found = refuse(cause, among, prober, execute, chosen)
                    for row in found[0]:
                        values = [column[row] for column in found]
                        figures.note(f"{cause.name}: {row}", values, SHOWN.get(row, milliseconds))
                    if (beyond := found[-1][BEYOND] or 0.0) > BAR:
                        wrong.append(f"{cause.name}: a waiter waited {beyond:.3f} s")
                    if found[-1][UNTOLD]:
                        wrong.append(f"{cause.name}: an error does not say {cause.words!r}")
    figures.print()
    for sentence in wrong:
        print(f"WRONG: {sentence}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
