"""A terminal for programs under test: a real pty, and a screen that shows what a user would see."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time
from typing import TYPE_CHECKING, Any

import pyte

from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["Screen"]


class Screen:
    """A program in a terminal of its own, as its session's leader, as a login shell would be.

    Args:
        keyboard: Whether its standard input is the terminal too.
    """

    def __init__(
        self,
        command: list[str],
        environment: Mapping[str, str],
        *,
        columns: int = 100,
        lines: int = 30,
        keyboard: bool = True,
    ) -> None:
        self.screen = pyte.Screen(columns, lines)
        self.raw = b""
        self._stream = pyte.ByteStream(self.screen)
        self._main, self.terminal = pty.openpty()
        self.resize(columns, lines, tell=False)
        self.before = termios.tcgetattr(self.terminal)
        size = {"COLUMNS": "", "LINES": "", "TERM": "xterm"}
        self.process = subprocess.Popen(
            command,
            env={**environment, **size},
            stdin=self.terminal if keyboard else subprocess.DEVNULL,
            stdout=self.terminal,
            stderr=self.terminal,
            start_new_session=True,
            preexec_fn=self._own,
        )

    def _own(self) -> None:
        # The terminal of the new session, so that its keys send signals.
        fcntl.ioctl(1, termios.TIOCSCTTY, 0)

    def resize(self, columns: int, lines: int, *, tell: bool = True) -> None:
        """Change the size of the window."""
        fcntl.ioctl(self._main, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        if tell:
            self.screen.resize(lines, columns)

    def press(self, keys: str) -> None:
        """Press keys."""
        os.write(self._main, keys.encode())

    @property
    def lines(self) -> list[str]:
        """What is to be seen now."""
        while select.select([self._main], [], [], 0)[0]:
            data = os.read(self._main, 65536)
            self.raw += data
            self._stream.feed(data)
        return [line.rstrip() for line in self.screen.display]

    @property
    def text(self) -> str:
        """The same, in one piece."""
        return "\n".join(self.lines)

    def shows(self, what: str | Callable[[str], bool], timeout: float = 30.0) -> str:
        """Wait until there is something to be seen, and return all that is."""
        seen = ""

        def found() -> bool:
            nonlocal seen
            seen = self.text
            return what in seen if isinstance(what, str) else what(seen)

        wait_until(found, timeout=timeout, what=f"not on the screen: {what}")
        return seen

    def mode(self) -> list[Any]:
        """The terminal's mode now."""
        return termios.tcgetattr(self.terminal)

    @property
    def is_as_before(self) -> bool:
        """Whether the program has given the terminal back: its mode, its screen and its cursor."""
        return (
            self.mode() == self.before
            and self.text is not None
            and self.raw.rfind(b"\x1b[?1049l") > self.raw.rfind(b"\x1b[?1049h")
            and self.raw.rfind(b"\x1b[?25h") > self.raw.rfind(b"\x1b[?25l")
        )

    def ends(self, timeout: float = 30.0) -> int:
        """Wait for the end and return the exit code."""
        deadline = time.monotonic() + timeout
        while self.process.poll() is None and time.monotonic() < deadline:
            # Nobody else reads what it writes, and it waits for that before it ends.
            assert self.text is not None
            time.sleep(0.01)
        assert self.text is not None
        return self.process.wait(0)

    def close(self) -> None:
        """End it, whatever it is doing."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
        for descriptor in (self._main, self.terminal):
            with contextlib.suppress(OSError):
                os.close(descriptor)
