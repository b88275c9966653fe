"""Processes that are commanded line by line; see `command_loop` for how they obey."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["CommandedProcess"]


class CommandedProcess:
    """A Python process that runs `obey`, from the side that commands it.

    Args:
        name: for messages.
        module: what it runs.
        environment: all variables that it has.
    """

    def __init__(self, name: str, module: str, environment: Mapping[str, str]) -> None:
        self.name = name
        # What it logs is of interest only when it ends before its time.
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-m", module],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def call(self, command: str, **arguments: Any) -> Any:
        """Give a command, wait until it is done and return its answer."""
        self.send(command, **arguments)
        return self.answer()

    def send(self, command: str, **arguments: Any) -> None:
        """Give a command, and don't wait."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([command, arguments]) + "\n")
        self._process.stdin.flush()

    def answer(self) -> Any:
        """Wait until the command that was given is done, and return its answer.

        Raises:
            RuntimeError: the process ended, or the command raised an error.
        """
        assert self._process.stdout is not None
        if not (line := self._process.stdout.readline()):
            raise RuntimeError(f"{self.name} ended:\n{self.log()}")
        error, answer = json.loads(line)
        if error is not None:
            raise RuntimeError(f"{self.name}: {error}\n{self.log()}".rstrip())
        return answer

    def log(self) -> str:
        """Return what the process has written to standard error."""
        self._errors.seek(0)
        return self._errors.read().decode(errors="replace")

    def close(self) -> None:
        """End the process, whatever it does."""
        self._process.kill()
        self._process.communicate()
        self._errors.close()
