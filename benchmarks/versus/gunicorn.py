"""One gunicorn worker that serves a site with one contestant's connections."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _common import environment

from embedded_postgres import free_port
from tests.support.waiting import wait_until

from .traffic import drive, get

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["Site"]


class Site:
    """The process, from its first answer on.

    Args:
        entry: its entry of DATABASES.
        threads: of its one worker; with *gevent*, greenlets as needed.
        application: what it serves.
        gevent: whether its worker is gevent's.
    """

    def __init__(
        self,
        entry: Mapping[str, Any],
        threads: int,
        application: str = "versus.site:application",
        gevent: bool = False,
        first: str = "/one",
    ) -> None:
        self.port = free_port()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115
        kind = ["-k", "gevent"] if gevent else ["-k", "gthread", "--threads", str(threads)]
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "gunicorn", application, *kind, "--workers", "1"),
                # Otherwise a socket in the user's home folder, shared by all of them.
                *("--no-control-socket", "--log-level", "warning"),
                *("--bind", f"127.0.0.1:{self.port}", "--keep-alive", "60"),
            ],
            env=environment(entry),
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,
        )
        self._first = first
        self._worker = 0

    def wait(self) -> None:
        """Wait for the first answer.

        Raises:
            RuntimeError: there is none.
        """
        wait_until(self._answers, timeout=60.0, what="gunicorn answers")
        if self._process.poll() is not None:
            raise RuntimeError(self.log())
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        # The kernel may leave some out while others come and go: proc_pid_task(5).
        self._worker = int(wait_until(children.read_text).split()[0])

    def _answers(self) -> bool:
        if self._process.poll() is not None:
            return True
        drive(self.port, lambda: get(self._first), 1, 0.0, b"200")
        return True

    def warm(self, request: bytes, connections: int) -> None:
        """Have each thread make its first requests, whatever comes of them."""
        with contextlib.suppress(RuntimeError):
            drive(self.port, lambda: request, connections, 0.3, b"200")

    def cpu(self) -> float:
        """Return the seconds of processor time that the worker has had (Linux).

        clock_getcpuclockid(3): the clock of a process is made from its id.
        """
        return time.clock_gettime((~self._worker << 3) | 2)

    def drive(
        self,
        request: Callable[[], bytes],
        connections: int,
        seconds: float,
        expect: bytes = b"200",
    ) -> dict[str, float]:
        """Make requests, and add the worker's processor time for each."""
        cpu = self.cpu()
        found = drive(self.port, request, connections, seconds, expect)
        found["cpu"] = (self.cpu() - cpu) / found.pop("count")
        return found

    def log(self) -> str:
        """Return what it has written."""
        self._log.seek(0)
        return self._log.read().decode(errors="replace")

    def close(self) -> None:
        """End it."""
        self._process.terminate()
        try:
            self._process.wait(15.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()
