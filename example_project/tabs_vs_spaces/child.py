"""A Python process of our own that ends when we do, with all of its descendants."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from typing import IO

from . import local, stopping

GRACE = 12.0
"""Seconds that a child has to end when asked; gunicorn gives its own requests 10."""


class Child:
    """Runs from here until ``running`` closes."""

    def __init__(
        self,
        running: contextlib.ExitStack,
        *arguments: str,
        env: dict[str, str],
        stderr: IO[str] | None = None,
        pass_fds: list[int] | None = None,
    ) -> None:
        stopping.pause(0)
        self.process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=local.PROJECT,
            env=env,
            stdin=subprocess.DEVNULL,
            stderr=stderr,
            pass_fds=pass_fds or [],
            # Ctrl-C reaches this process alone, which then stops the others in order.
            start_new_session=True,
        )
        running.callback(self.end)

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def end(self) -> None:
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(GRACE)
        # The session outlives its leader when a worker hangs.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, 9)
        self.process.wait()
