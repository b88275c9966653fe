"""A login that is refused in words of the test's choice, as what stands before a server does it.

https://www.postgresql.org/docs/current/protocol-flow.html#PROTOCOL-FLOW-START-UP
"""

from __future__ import annotations

import asyncio
import struct
from typing import TYPE_CHECKING, NamedTuple

from tests.servers.statement_faults import CANCEL_REQUEST, GSS_REQUEST, SSL_REQUEST, fatal

if TYPE_CHECKING:
    import socket

__all__ = ["LoginRefusal"]


class LoginRefusal(NamedTuple):
    """What a client is told in place of being let in."""

    message: str
    sqlstate: str

    async def tell(self, client: socket.socket) -> None:
        """Read what a client begins with, and refuse it; there is no TLS."""
        loop = asyncio.get_running_loop()
        while True:
            length = struct.unpack("!i", await _read(client, 4))[0]
            body = await _read(client, length - 4)
            kind = struct.unpack("!i", body[:4])[0]
            if kind == CANCEL_REQUEST:
                return
            if kind not in (SSL_REQUEST, GSS_REQUEST):
                break
            await loop.sock_sendall(client, b"N")
        await loop.sock_sendall(client, fatal(self.message, self.sqlstate))


async def _read(client: socket.socket, number: int) -> bytes:
    found = b""
    while len(found) < number:
        more = await asyncio.get_running_loop().sock_recv(client, number - len(found))
        if not more:
            raise ConnectionResetError("the client has gone")
        found += more
    return found
