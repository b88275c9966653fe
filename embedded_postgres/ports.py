"""Loopback ports that nobody listens on."""

from __future__ import annotations

import contextlib
import os
import random
import socket

from .errors import ServerError

__all__ = ["free_port", "take_share"]

#: Outside the usual range of ephemeral ports: there, any outgoing connection could take a port
#: while its server is down, and a client that keeps trying would one day connect to itself.
PORTS = range(20000, 32000)

_share = PORTS


def take_share(index: int, count: int) -> None:
    """Take ports from one of equal shares of the range alone.

    Processes side by side then never get each other's, not even that of a server that is down.

    Args:
        index: which share, from 0.
        count: how many there are.
    """
    global _share
    _share = PORTS[index::count]


def free_port() -> int:
    """Return a loopback port that nobody listens on at this moment."""
    for port in random.sample(_share, min(200, len(_share))):
        with socket.socket() as probe:
            if os.name == "posix":
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                return port
    raise ServerError(f"no free port between {PORTS.start} and {PORTS.stop}")
