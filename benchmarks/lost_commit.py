"""What callers are told when the answer to COMMIT is lost, and what really happened.

    python benchmarks/lost_commit.py --quick

Each call raises a counter by one, through a proxy that spoils the first COMMIT of half of them: it
never arrives ("refused"), its answer is lost, its transaction is left open ("stranded"), or it
arrives after 0.2 s ("late"). Calls and faults are the same for all. After each call the counter is
read on the server.

Needs ``pip install django-pgtransaction``, and g++ and libpqxx (Debian: libpqxx-dev) for
``robusttransaction``; what is missing is left out and said.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import select
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import psycopg
from _common import ROOT, FaultProxy, arguments, server
from _contestants import CONTESTANTS

from embedded_postgres import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from _common import EmbeddedServer

Fault = Literal["refused", "answer_lost", "stranded", "late"]
FAULTS: tuple[Fault, ...] = ("refused", "answer_lost", "stranded", "late")
LATE = 0.2
"""Seconds after which a "late" COMMIT is let through."""

ROBUST = "libpqxx robusttransaction"

PATIENCE = 150.0
"""Seconds that a call may take."""


@dataclass
class Outcome:
    """What one contestant's calls came to."""

    why_not: str | None = None
    """Why it did not take part."""
    calls: int = 0
    hit: int = 0
    """COMMITs that were spoiled."""
    done: int = 0
    """Calls whose caller was told that they took effect."""
    increments: int = 0
    doubled: int = 0
    """Calls that took effect more than once."""
    lost: int = 0
    """Calls that were acknowledged and took no effect."""
    unknown: int = 0
    """Calls whose caller was told that nobody knows."""
    failed: int = 0
    """Calls that ended in another exception."""
    failed_but_done: int = 0
    """Those of them that took effect."""
    seconds: float = 0.0
    errors: set[str] = field(default_factory=set)

    def row(self) -> list[str]:
        """Return the cells of the table, in the order of ``HEAD``."""
        if self.why_not is not None:
            return ["-"] * len(HEAD)
        failed = f"{self.failed}"
        if self.failed_but_done:
            failed += f" ({self.failed_but_done} took effect)"
        counts = [self.calls, self.hit, self.done, self.increments, self.doubled, self.lost]
        return [*map(str, counts), str(self.unknown), failed, f"{self.seconds:.0f}"]


HEAD = (
    *("calls", "COMMITs hit", "acknowledged", "increments", "doubled", "lost"),
    *("unknown", "failed", "s"),
)


class Contestant:
    """The process of one way of retrying: takes a line, answers a line."""

    def __init__(self, command: Sequence[str], database: dict[str, Any]) -> None:
        self._process = subprocess.Popen(
            command,
            env={
                **os.environ,
                "BENCHMARK_DATABASE": json.dumps(database),
                "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )

    def call(self) -> str:
        """Have it make one call, and return what the caller was told."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self.answer()

    def answer(self) -> str:
        """Return its next line."""
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], PATIENCE)[0]:
            return "failed: no answer"
        return self._process.stdout.readline().strip() or "failed: it ended"

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()


def compete(
    command: Sequence[str], target: EmbeddedServer, faults: Sequence[Fault | None]
) -> Outcome:
    """Make the calls, each with its fault or None, and count."""
    outcome = Outcome()
    with contextlib.ExitStack() as stack:
        proxy = stack.enter_context(FaultProxy(target.host, target.port, listen=free_port()))
        operator = stack.enter_context(psycopg.connect(**target.parameters(), autocommit=True))
        operator.execute("UPDATE counter SET n = 0")
        command = [part.format(port=proxy.port) for part in command]
        contestant = Contestant(command, {**target.django_settings(), "PORT": proxy.port})
        stack.callback(contestant.close)
        if (greeting := contestant.answer()) != "ready":
            return Outcome(why_not=greeting)
        began = time.monotonic()
        for fault in faults:
            before = count(operator)
            told, hit = spoil(contestant, proxy, fault)
            end_what_was_left_open(operator)
            effect = count(operator) - before
            outcome.calls += 1
            outcome.hit += hit
            outcome.increments += effect
            outcome.doubled += effect > 1
            if told == "done":
                outcome.done += 1
                outcome.lost += effect == 0
            elif told == "unknown":
                outcome.unknown += 1
            else:
                outcome.failed += 1
                outcome.failed_but_done += effect > 0
                outcome.errors.add(told)
        outcome.seconds = time.monotonic() - began
    return outcome


def spoil(contestant: Contestant, proxy: FaultProxy, fault: Fault | None) -> tuple[str, int]:
    """Make one call with that fault; returns what was told and how many COMMITs were hit."""
    before = proxy.triggered()
    if fault is not None:
        # Each call sends a COMMIT, so that nothing stays armed for the next one.
        proxy.fault_at_commit("stranded" if fault == "late" else fault)
    answered = threading.Event()
    releaser = threading.Thread(target=let_through, args=(proxy, before, answered))
    if fault == "late":
        releaser.start()
    told = contestant.call()
    answered.set()
    if fault == "late":
        releaser.join()
    return told, proxy.triggered() - before


def let_through(proxy: FaultProxy, before: int, answered: threading.Event) -> None:
    """Let a COMMIT through some time after it was held back."""
    while proxy.triggered() == before and not answered.is_set():
        time.sleep(0.005)
    time.sleep(LATE)
    proxy.release()


def end_what_was_left_open(operator: psycopg.Connection[Any]) -> None:
    """End transactions that nobody will ever finish, and wait for those under way."""
    while operator.execute(
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
        "WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() "
        "AND (backend_xid IS NOT NULL OR state <> 'idle')"
    ).fetchall()[0][0]:
        time.sleep(0.01)


def count(operator: psycopg.Connection[Any]) -> int:
    """Return the counter."""
    n: int = operator.execute("SELECT n FROM counter").fetchall()[0][0]
    return n


@contextlib.contextmanager
def robusttransaction() -> Iterator[tuple[Path | None, str]]:
    """Compile the program that uses libpqxx; yields it, or None and the reason."""
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        yield None, "not built: no C++ compiler"
        return
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder, "robusttransaction")
        source = Path(__file__).with_name("robusttransaction.cxx")
        built = subprocess.run(
            [compiler, "-std=c++17", str(source), "-o", str(program), "-lpqxx", "-lpq"],
            capture_output=True,
            text=True,
        )
        if built.returncode:
            reason = next((line for line in built.stderr.splitlines() if "error" in line), "")
            yield None, f"not built: {reason}"
        else:
            yield program, ""


def show(outcomes: dict[str, Outcome]) -> None:
    """Print the table, and below it who did not take part and which errors there were."""
    cells = [["", *HEAD], *([name, *one.row()] for name, one in outcomes.items())]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for name, *others in cells:
        shown = [one.rjust(width) for one, width in zip(others, widths[1:], strict=True)]
        print("  ".join([name.ljust(widths[0]), *shown]), flush=True)
    print()
    for name, one in outcomes.items():
        if one.why_not is not None:
            print(f"{name}: {one.why_not}")
        for error in sorted(one.errors):
            print(f"{name}: {error}")


def main() -> None:
    """Have them compete and print the table."""
    parser = arguments(__doc__)
    parser.add_argument("--calls", type=int, default=150)
    parser.add_argument("--seed", type=int, default=1, help="of the faults")
    parser.add_argument("--only", nargs="+", default=[*CONTESTANTS, ROBUST], metavar="NAME")
    chosen = parser.parse_args()
    if chosen.quick:
        chosen.calls = 16
    # Each kind equally often, so that a short run has all of them, too.
    faults: list[Fault | None] = [*(FAULTS * chosen.calls)[: chosen.calls // 2]]
    faults += [None] * (chosen.calls - len(faults))
    random.Random(chosen.seed).shuffle(faults)

    outcomes: dict[str, Outcome] = {}
    # What a site has that does not want locks held for ever by clients that are gone.
    with server(idle_in_transaction_session_timeout="1s") as target, robusttransaction() as built:
        with psycopg.connect(**target.parameters()) as connection:
            connection.execute("CREATE TABLE counter (n int)")
            connection.execute("INSERT INTO counter VALUES (0)")
        for name in chosen.only:
            if name != ROBUST:
                command = [sys.executable, str(Path(__file__).with_name("_contestants.py")), name]
                outcomes[name] = compete(command, target, faults)
            elif built[0] is None:
                outcomes[name] = Outcome(why_not=built[1])
            else:
                where = psycopg.conninfo.make_conninfo("", **target.parameters() | {"port": None})
                command = [str(built[0]), where + " port={port}"]
                outcomes[name] = compete(command, target, faults)
            print(f"{name}: {outcomes[name].seconds:.0f} s", file=sys.stderr)
    show(outcomes)


if __name__ == "__main__":
    main()
