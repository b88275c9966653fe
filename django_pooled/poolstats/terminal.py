"""A terminal with a screen of its own and single keys; it is restored at any end of the program."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
from typing import TYPE_CHECKING, Any

# Windows has none, and no keys then.
with contextlib.suppress(ModuleNotFoundError):
    import termios

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

__all__ = ["Ended", "Terminal", "writer"]

ENTER = "\x1b[?1049h\x1b[?25l\x1b[2J"
"""Another screen, without a cursor, empty."""

LEAVE = "\x1b[?25h\x1b[?1049l"

HOME, BELOW, REST_OF_LINE = "\x1b[H", "\x1b[J", "\x1b[K"

PASTED = 0.05
"""Seconds within which the rest of a key's sequence arrives."""

LONGEST_WAIT = 0.1
"""Seconds that a wait for a key takes at most, so that the caller sees what else has changed."""


class Ended(BaseException):
    """A signal asks the process to end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Terminal:
    """Draws frames and reads keys while it is entered; then the terminal is as before.

    For the main thread. Without a keyboard, or on a platform without termios, there are no keys.
    Ctrl-Z gives the terminal back for as long as the process is stopped.

    Args:
        write: Writes to the terminal at once, whatever else is being written: see `writer`.
        keyboard: Its file descriptor; None for standard input, if that is a terminal.
    """

    def __init__(self, write: Callable[[str], object], keyboard: int | None = None) -> None:
        self.resized = False
        """Whether the screen has to be drawn anew; the caller resets it."""
        self._write = write
        self._keyboard = _keyboard() if keyboard is None else keyboard
        self._before: tuple[int, list[Any]] | None = None
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> Terminal:
        try:
            self._take()
            self._listen()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        # A second signal must not keep the terminal from being restored.
        for number in self._handlers:
            signal.signal(number, signal.SIG_IGN)
        try:
            self._give_back()
        finally:
            for number, handler in self._handlers.items():
                signal.signal(number, handler)
            self._handlers.clear()

    def draw(self, lines: list[str]) -> None:
        """Draw over the last frame, without a flicker."""
        text = "\n".join(f"{line}{REST_OF_LINE}" for line in lines)
        self._write(f"{HOME}{text}{BELOW}")

    def key(self, timeout: float) -> str:
        """Wait for a key and return it; "" for none within so many seconds, or a little less."""
        timeout = min(max(0.0, timeout), LONGEST_WAIT)
        if self._keyboard is None:
            time.sleep(timeout)
            return ""
        readable, _, _ = select.select([self._keyboard], [], [], timeout)
        return self._read(self._keyboard) if readable else ""

    def _read(self, keyboard: int) -> str:
        data = b""
        with contextlib.suppress(OSError):
            data = os.read(keyboard, 1)
        if not data:
            # The terminal is gone: every read would return at once.
            self._keyboard = None
            return ""
        if data == b"\x1b":
            # An arrow or a function key: its sequence must not be taken for letters.
            while select.select([keyboard], [], [], PASTED)[0] and os.read(keyboard, 16):
                pass
            return "escape"
        return data.decode("ascii", "replace")

    def _listen(self) -> None:
        handlers = {
            "SIGINT": signal.default_int_handler,
            "SIGTERM": self._end,
            "SIGHUP": self._end,
            "SIGWINCH": self._resize,
            "SIGTSTP": self._stop,
            "SIGCONT": self._go_on,
        }
        for name, handler in handlers.items():
            # Windows has few of them.
            if number := getattr(signal, name, None):
                self._handlers[number] = signal.signal(number, handler)

    def _end(self, number: int, frame: FrameType | None) -> None:
        raise Ended(number)

    def _resize(self, number: int, frame: FrameType | None) -> None:
        self.resized = True

    def _stop(self, number: int, frame: FrameType | None) -> None:
        """Give the terminal back to the shell, and stop as without a handler."""
        self._give_back()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        # Here after SIGCONT.
        signal.signal(number, self._stop)

    def _go_on(self, number: int, frame: FrameType | None) -> None:
        # After a SIGSTOP as well, which has no handler.
        self._take()
        self.resized = True

    def _take(self) -> None:
        if self._keyboard is not None:
            if self._before is None:
                self._before = self._keyboard, termios.tcgetattr(self._keyboard)
            # As tty.setcbreak(), which Ctrl-C and Ctrl-Z survive.
            mode = termios.tcgetattr(self._keyboard)
            mode[3] &= ~(termios.ECHO | termios.ICANON)
            mode[6][termios.VMIN], mode[6][termios.VTIME] = 1, 0
            termios.tcsetattr(self._keyboard, termios.TCSADRAIN, mode)
        self._write(ENTER)

    def _give_back(self) -> None:
        # The other end of the terminal may be gone.
        with contextlib.suppress(OSError):
            self._write(LEAVE)
        if self._before is not None:
            (keyboard, mode), self._before = self._before, None
            with contextlib.suppress(OSError, termios.error):
                termios.tcsetattr(keyboard, termios.TCSADRAIN, mode)


def writer(descriptor: int) -> Callable[[str], None]:
    """Return a function that writes to a file descriptor, in a signal's handler too.

    A buffered file refuses that while it is flushed: "reentrant call".
    """

    def write(text: str) -> None:
        data = text.encode(errors="replace")
        while data:
            data = data[os.write(descriptor, data) :]

    return write


def _keyboard() -> int | None:
    if "termios" not in globals():
        return None
    try:
        return sys.stdin.fileno() if sys.stdin.isatty() else None
    except (AttributeError, OSError, ValueError):
        # Closed, or none at all.
        return None
