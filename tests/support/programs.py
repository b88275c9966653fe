"""Runs programs to their end."""

from __future__ import annotations

import subprocess
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

__all__ = ["run_into", "run_program"]


def run_program(
    command: Sequence[str],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a program without input; ``stdout`` is all that it printed, errors included."""
    return subprocess.run(
        command,
        cwd=cwd,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        check=False,
        timeout=timeout,
    )


def run_into(
    log: Path, command: Sequence[str], *, cwd: Path, env: Mapping[str, str]
) -> tuple[int, float]:
    """Run a program without input; what it prints goes to a file. Return its status and seconds."""
    started = time.monotonic()
    with log.open("wb") as output:
        ended = subprocess.run(
            command,
            cwd=cwd,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
        )
    return ended.returncode, time.monotonic() - started
