"""A process that publishes made-up pools and does what it reads: fork, start, stop, exit."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __name__ == "__main__" and "--gevent" in sys.argv:
    from gevent import monkey  # type: ignore[import-not-found,import-untyped,unused-ignore]

    monkey.patch_all()

from django_pooled.stats import publisher
from django_pooled.stats.orders import Answer
from django_pooled.stats.snapshot import Counters, PoolSnapshot, process_report

if TYPE_CHECKING:
    from collections.abc import Callable

    from django_pooled.stats.orders import Order

__all__ = ["Publisher", "snapshot"]

ROOT = Path(__file__).resolve().parents[2]


def snapshot(alias: str = "default", **figures: Any) -> PoolSnapshot:
    """Return a pool with one idle connection, unless told otherwise."""
    values: dict[str, Any] = {
        "alias": alias,
        "pool_mode": "session",
        "min_size": 1,
        "max_size": 10,
        "size": figures.get("idle", 1) + figures.get("in_use", 0),
        "idle": 1,
        "in_use": 0,
        "waiting": 0,
        "connecting": 0,
        "server": "db.example:5432/site",
        "age": 60.0,
        "longest_waiting": None,
        "connections": [],
        "retry_budget_left": 100.0,
        "last_error": None,
        "last_error_age": None,
    }
    counters = Counters(checkouts=7)
    for _ in range(7):
        counters.wait.record(0.1)
    return PoolSnapshot(**{**values, "counters": counters, **figures})


class Publisher:
    """Such a process, seen from the test."""

    def __init__(
        self,
        folder: Path | None,
        *pools: dict[str, Any],
        uid: int | None = None,
        gevent: bool = False,
    ) -> None:
        wait, self._lifeline = os.pipe()
        options = {"folder": folder and str(folder), "uid": uid, "wait": wait}
        command = [
            sys.executable,
            "-m",
            "tests.support.publisher",
            json.dumps(pools or [{}]),
        ]
        self.process: subprocess.Popen[str] = subprocess.Popen(
            [*command, json.dumps(options), *(["--gevent"] if gevent else [])],
            cwd=ROOT,
            pass_fds=[wait],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        os.close(wait)
        self.answer()

    @property
    def pid(self) -> int:
        return self.process.pid

    def tell(self, what: str) -> str:
        """Have it do something and return what it says when it is done."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{what}\n")
        self.process.stdin.flush()
        return self.answer()

    def answer(self) -> str:
        """Return the next line that it prints."""
        assert self.process.stdout is not None
        line: str = self.process.stdout.readline()
        return line.strip()

    def kill(self) -> None:
        """End it so that it can't clean up; its children go on."""
        self.process.kill()
        self.process.wait()

    def freeze(self) -> None:
        """Stop it, as a debugger or a paused container does."""
        self.process.send_signal(signal.SIGSTOP)
        # Only when the last of its threads has stopped, the process has.
        os.waitid(os.P_PID, self.pid, os.WSTOPPED)

    def close(self) -> None:
        """Let it and its children end in their own way."""
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
        self.process.communicate()


def _main(pools: str, options: str) -> None:
    folder, uid, wait = (json.loads(options).get(key) for key in ("folder", "uid", "wait"))
    if uid is not None:
        # Only now, because a user from nowhere may not be able to run this Python.
        os.setgid(uid)
        os.setuid(uid)
    snapshots = [snapshot(**pool) for pool in json.loads(pools)]
    hooks = [publisher.after_fork_in_child]
    os.register_at_fork(after_in_child=lambda: [hook() for hook in hooks])

    orders: list[str] = []

    def obey(order: Order, by: str) -> list[Answer]:
        orders.append(f"{order.verb} by {by}")
        return [Answer(each.alias, each.id, "done", order.verb) for each in snapshots]

    def start() -> None:
        site = snapshots[0].site if snapshots else ""
        publisher.start(
            folder,
            lambda: process_report(snapshots),
            site,
            lambda seconds: snapshots,
            obey=obey,
        )

    def fork(then: Callable[[], None] = lambda: None) -> int:
        if child := os.fork():
            return child
        then()
        select.select([wait], [], [])
        # Like a worker of Celery's: no clean-up.
        os._exit(0)

    do: dict[str, Callable[[], object]] = {
        "start": start,
        "stop": publisher.stop,
        "fork": fork,
        "fork and start": lambda: fork(start),
        "fork and stop": lambda: fork(publisher.stop),
        "forget hooks": hooks.clear,
        "break": lambda: snapshots.append(object()),  # type: ignore[arg-type]
        "processor time": time.process_time,
        "orders": lambda: ", ".join(orders),
    }
    _say(start())  # type: ignore[func-returns-value]
    # select() and not a plain read, which would hold up everything else under gevent.
    while select.select([sys.stdin], [], []) and (line := sys.stdin.readline()):
        _say(do[line.strip()]())
    publisher.stop()


def _say(result: object) -> None:
    sys.stdout.write(f"{result}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    _main(*[argument for argument in sys.argv[1:] if argument != "--gevent"])
