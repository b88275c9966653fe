"""Requests over keep-alive connections, as many at a time as there are connections."""

from __future__ import annotations

import contextlib
import selectors
import socket
import time
from typing import TYPE_CHECKING

from .worker import percentiles

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["drive", "get"]


def get(path: str, *headers: str) -> bytes:
    """Return a request."""
    return "\r\n".join([f"GET {path} HTTP/1.1", "Host: localhost", *headers, "", ""]).encode()


class _Client:
    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.began = 0.0
        self._seen = b""

    def ask(self, request: bytes) -> None:
        self._seen = b""
        self.began = time.perf_counter()
        self.socket.sendall(request)

    def answered(self) -> bytes | None:
        """Read what is there; return the whole answer's head, or None while it is not whole."""
        data = self.socket.recv(65536)
        if not data:
            raise RuntimeError(f"closed amid an answer: {self._seen[:200]!r}")
        self._seen += data
        head, end, body = self._seen.partition(b"\r\n\r\n")
        if not end:
            return None
        length = None
        for line in head.split(b"\r\n")[1:]:
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        if length is None:
            raise RuntimeError(f"an answer without a length: {head[:200]!r}")
        return head if len(body) >= length else None


def drive(
    port: int, request: Callable[[], bytes], connections: int, seconds: float, expect: bytes
) -> dict[str, float]:
    """Make requests for so long.

    Args:
        port: the site's.
        request: makes the next.
        connections: how many are under way at a time.
        seconds: how long.
        expect: the status that each answer has to have.

    Raises:
        RuntimeError: one has another.
    """
    walls = []
    with contextlib.ExitStack() as stack:
        selector = stack.enter_context(selectors.DefaultSelector())
        clients = [_Client(port) for _ in range(connections)]
        for client in clients:
            stack.callback(client.socket.close)
            selector.register(client.socket, selectors.EVENT_READ, client)
            client.ask(request())
        began = time.perf_counter()
        end, under_way = began + seconds, connections
        while under_way:
            for key, _ in selector.select(60.0):
                client = key.data
                head = client.answered()
                if head is None:
                    continue
                now = time.perf_counter()
                if head.split(b" ", 2)[1] != expect:
                    raise RuntimeError(head.split(b"\r\n")[0].decode())
                walls.append(now - client.began)
                if now < end:
                    client.ask(request())
                else:
                    under_way -= 1
        wall = time.perf_counter() - began
    return {"rate": len(walls) / wall, "count": len(walls), **percentiles(walls)}
