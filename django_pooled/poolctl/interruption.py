"""The signals that end the command."""

from __future__ import annotations

import contextlib
import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["interrupted_once"]

_SIGNALS = {signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)}


@contextlib.contextmanager
def interrupted_once() -> Iterator[None]:
    """Have the first signal raise an exception in this block, and later ones do nothing.

    With the exception the pools resume, which takes seconds at most. A second signal would leave
    some of them paused, and often there is one: systemd can send SIGHUP along with SIGTERM, and
    Ctrl-C is pressed twice.
    """
    is_interrupted = False

    def interrupt(number: int, _: object) -> None:
        nonlocal is_interrupted
        if is_interrupted:
            return
        is_interrupted = True
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + number)

    with contextlib.ExitStack() as stack:
        for number in _SIGNALS:
            before = signal.getsignal(number)
            # nohup has SIGHUP ignored, and so it stays.
            if before is not None and before is not signal.SIG_IGN:
                # Only in the main thread.
                with contextlib.suppress(ValueError):
                    signal.signal(number, interrupt)
                    stack.callback(signal.signal, number, before)
        yield
