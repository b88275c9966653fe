"""The processes of this machine."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["process_table"]


def process_table() -> Iterator[tuple[int, int, str]]:
    """Yield pid, parent's pid and state of every process."""
    if sys.platform == "linux":
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
                    yield int(entry.name), int(parent), state
    else:
        table = subprocess.run(["ps", "-A", "-o", "pid=,ppid=,state="], capture_output=True)
        for line in table.stdout.decode().splitlines():
            pid, parent, state = line.split()[:3]
            yield int(pid), int(parent), state
