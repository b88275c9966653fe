"""Stops all processes of a PostgreSQL server, and is sure to let them go on.

Run as a program, ``python -m faults.freezing PID SECONDS``, it is the one that does both: it thaws
the server when the time is over or its standard input ends, as that does when the process that
holds the other end is killed. Left to that process, a SIGKILL would leave a frozen server behind.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

from embedded_postgres import process_table

PROJECT = Path(__file__).resolve().parent.parent


class Freezer:
    """Freezes one server at a time."""

    def __init__(self) -> None:
        self._keeper: subprocess.Popen[bytes] | None = None
        self._pid = 0
        self._until = 0.0

    @property
    def left(self) -> float | None:
        """Seconds until the server goes on by itself; None while it is not frozen."""
        return None if self._keeper is None else max(0.0, self._until - time.monotonic())

    def has_thawed(self) -> bool:
        """Whether the server has gone on by itself since this was last asked."""
        if self._keeper is None or self._keeper.poll() is None:
            return False
        self.thaw()
        return True

    def freeze(self, pid: int, seconds: float) -> None:
        """Stop the server with this main process for so long, unless :meth:`thaw` comes first."""
        self.thaw()
        self._pid = pid
        self._keeper = subprocess.Popen(
            [sys.executable, "-m", "faults.freezing", str(pid), str(seconds)],
            cwd=PROJECT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert self._keeper.stdout is not None
        if not self._keeper.stdout.readline():
            raise RuntimeError("the server could not be frozen; the reason is above")
        self._until = time.monotonic() + seconds

    def thaw(self) -> None:
        """Let the server go on."""
        keeper, self._keeper = self._keeper, None
        if keeper is None:
            return
        keeper.communicate()
        if keeper.returncode != 0:
            # Somebody killed it, before it could.
            _signal_all(self._pid, signal.SIGCONT)


def _signal_all(pid: int, number: int) -> None:
    # The main process first, which starts the others: stopped, it starts no more of them.
    _signal(pid, number)
    for child, parent, _ in process_table():
        if parent == pid:
            _signal(child, number)


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _keep_frozen(pid: int, seconds: float) -> None:
    # As an exception, so that the server is thawed then too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    try:
        _signal_all(pid, signal.SIGSTOP)
        sys.stdout.write("frozen\n")
        sys.stdout.flush()
        select.select([sys.stdin], [], [], seconds)
    finally:
        _signal_all(pid, signal.SIGCONT)


if __name__ == "__main__":
    _keep_frozen(int(sys.argv[1]), float(sys.argv[2]))
