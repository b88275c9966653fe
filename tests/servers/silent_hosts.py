"""Addresses of hosts that say nothing: one accepts and never answers, one loses all packets."""

from __future__ import annotations

import contextlib
import socket
from typing import TYPE_CHECKING

from embedded_postgres import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["SILENT_HOSTS", "accepts_and_never_answers", "loses_packets"]


@contextlib.contextmanager
def accepts_and_never_answers() -> Iterator[int]:
    """Listen on a port of 127.0.0.1, of which the kernel alone accepts connections."""
    with socket.create_server(("127.0.0.1", free_port()), backlog=4096) as listening:
        yield listening.getsockname()[1]


@contextlib.contextmanager
def loses_packets() -> Iterator[int]:
    """Have a port of 127.0.0.1 at which no packet is answered, since its backlog is full.

    Linux drops those that would begin another connection.
    """
    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(socket.create_server(("127.0.0.1", free_port()), backlog=0))
        address = listening.getsockname()
        while True:
            filler = stack.enter_context(socket.socket())
            filler.settimeout(0.5)
            try:
                filler.connect(address)
            except TimeoutError:
                break
        yield address[1]


SILENT_HOSTS = {"accepts": accepts_and_never_answers, "lost packets": loses_packets}
"""By name: what makes one, and yields its port."""
