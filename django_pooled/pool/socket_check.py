"""Tells whether a socket has something to read, without letting other threads run meanwhile.

Python's own functions give up the interpreter's lock (GIL) for the system call, which never blocks
here, and another thread takes the lock: with 8 busy threads a checkout then cost 70 µs of
processor time more, and a third of the throughput. A function that is called by way of
`ctypes.PyDLL` keeps the lock: https://docs.python.org/3/library/ctypes.html#ctypes.PyDLL
"""

from __future__ import annotations

import select
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.pq import ConnStatus

_poll: Any = None
if hasattr(select, "poll"):
    # Not on Windows. A Python may have been built without ctypes, and a C library be built in.
    with suppress(ImportError, OSError, AttributeError):
        import ctypes

        _poll = ctypes.PyDLL(None).poll

if TYPE_CHECKING:
    from collections.abc import Callable

    from psycopg.pq.abc import PGconn

__all__ = ["look_at", "reads_on"]

_READS = 64
"""Reads after which a socket that never runs dry is left to the next round trip."""


def look_at(socket: int) -> Callable[[], object]:
    """Return a callable that tells whether a socket is readable or at its end.

    Making it takes longer than calling it.

    Args:
        socket: Its file descriptor.
    """
    if _poll is not None:
        # struct pollfd: https://pubs.opengroup.org/onlinepubs/9799919799/functions/poll.html
        entry = _Entry(socket, select.POLLIN, 0)
        return partial(_poll, ctypes.byref(entry), ctypes.c_ulong(1), ctypes.c_int(0))
    if hasattr(select, "poll"):
        poll = select.poll()
        poll.register(socket, select.POLLIN)
        return partial(poll.poll, 0)
    return partial(_select, socket)


def reads_on(pgconn: PGconn, is_readable: Callable[[], object]) -> bool:
    """Have libpq read what has arrived; tell whether the socket is still open.

    Args:
        pgconn: libpq's connection.
        is_readable: Tells whether its socket has something to read.
    """
    if not is_readable():
        return True
    try:
        for _ in range(_READS):
            pgconn.consume_input()
            # Has libpq parse what was read, which is when it hands out notices.
            pgconn.is_busy()
            if not is_readable():
                break
    except psycopg.OperationalError:
        return False
    return pgconn.status == ConnStatus.OK


def _select(socket: int) -> bool:
    return bool(select.select([socket], [], [], 0)[0])


if _poll is not None:

    class _Entry(ctypes.Structure):
        _fields_ = (
            ("fd", ctypes.c_int),
            ("events", ctypes.c_short),
            ("revents", ctypes.c_short),
        )
