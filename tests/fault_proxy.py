"""A TCP proxy between client and server that fails on demand, in a process of its own.

It can't be a thread of the test's process: psycopg's C functions hold the GIL while they wait.
The proxy acknowledges what it receives, so a frozen connection never loses a packet as a broken
network does: keepalive and ``tcp_user_timeout`` see nothing of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from types import TracebackType

__all__ = ["FaultProxy", "Filter", "StatementFault"]

StatementFaultKind = Literal["refused", "answer_lost", "stranded"]

SSL_REQUEST, GSS_REQUEST, CANCEL_REQUEST = 80877103, 80877104, 80877102


class FaultProxy:
    """The test's side: starts the proxy's process and commands it.

    Each command has taken effect when it returns. The port stays the same throughout.

    Args:
        host: the server's host.
        port: the server's port.
        listen: the proxy's own port on 127.0.0.1; outside the range of ephemeral ports, since
            it has to be had again after ``down()``.
    """

    host = "127.0.0.1"

    def __init__(self, host: str, port: int, *, listen: int) -> None:
        self.port = listen
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__)), host, str(port), str(listen)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            # Ctrl-C in the terminal is for the test run, which then closes the proxy.
            start_new_session=True,
        )
        self._answer()

    def forward(self) -> None:
        """Listen and pass everything on: the end of ``down``, ``deaf`` and ``freeze``."""
        self._do("forward")

    def down(self) -> None:
        """Refuse new connections; those established stay as they are (see ``cut``)."""
        self._do("down")

    def deaf(self) -> None:
        """Accept new connections and never answer on them; those established go on."""
        self._do("deaf")

    def freeze(self) -> None:
        """Keep all connections open and pass no bytes, either way, until ``forward()``."""
        self._do("freeze")

    def delay(self, seconds: float) -> None:
        """Hold back every chunk for ``seconds``, each way."""
        self._do("delay", seconds=seconds)

    def cut(self, *, reset: bool = False) -> int:
        """Close all established connections, with RST or FIN, and return how many there were."""
        return int(self._do("cut", reset=reset))

    def retarget(self, host: str, port: int) -> None:
        """Lead new connections to another server, as a failover does."""
        self._do("retarget", host=host, port=port)

    def fault_at_commit(self, kind: StatementFaultKind, *, times: int = 1) -> None:
        """Arm ``fault_at`` for COMMIT."""
        self.fault_at(r"COMMIT\b", kind, times=times)

    def fault_at(self, pattern: str, kind: StatementFaultKind, *, times: int = 1) -> None:
        """Lose the connection at the next statements whose beginning matches, on any connection.

        Args:
            pattern: regular expression, in any case of letters.
            kind: "refused" closes both sides before the statement reaches the server;
                "answer_lost" closes both when the server has answered it, before the client
                sees that; "stranded" closes the client's side only and holds the statement back,
                so that the server waits for it in an open transaction until ``release()``.
            times: how many statements are hit.
        """
        self._do("fault", pattern=pattern, kind=kind, times=times)

    def release(self) -> int:
        """Send what was "stranded" on to the server, and return how many statements that were."""
        return int(self._do("release"))

    def triggered(self) -> int:
        """Return how many statements were hit so far."""
        return int(self._do("triggered"))

    def connects(self) -> list[float]:
        """Return ``time.monotonic()`` of each connection accepted so far."""
        return list(self._do("connects"))

    def established(self) -> int:
        """Return how many clients are connected at present."""
        return int(self._do("established"))

    def close(self) -> None:
        """End the proxy and all its connections."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def __enter__(self) -> FaultProxy:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _do(self, command: str, **arguments: Any) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([command, arguments]) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the proxy ended with {self._process.wait()}")
        error, value = json.loads(line)
        if error is not None:
            raise RuntimeError(f"the proxy failed: {error}")
        return value


# The rest runs in the proxy's process.


class EndOfLink(Exception):
    """Raised by a filter: close this connection now."""

    def __init__(self, *, held: bytes | None = None) -> None:
        #: What the server's side waits for while it is kept open; None closes it, too.
        self.held = held


class Filter:
    """Sees what passes on one connection, chunk by chunk, and returns what is to be passed on."""

    def from_client(self, data: bytes) -> bytes:
        return data

    def from_server(self, data: bytes) -> bytes:
        return data


class Messages:
    """Cuts one direction of the PostgreSQL protocol into messages (type, body)."""

    def __init__(self) -> None:
        self._rest = b""
        #: The next message has no type byte: a client's start-up packet.
        self.untyped = False
        #: Answers of one byte, without length, that come first: to SSLRequest and the like.
        self.single_bytes = 0

    def feed(self, data: bytes) -> Iterator[tuple[bytes, bytes]]:
        self._rest += data
        while self._rest:
            if self.single_bytes:
                self.single_bytes -= 1
                answer, self._rest = self._rest[:1], self._rest[1:]
                yield b"", answer
                continue
            head = 0 if self.untyped else 1
            if len(self._rest) < head + 4:
                return
            end = head + int.from_bytes(self._rest[head : head + 4], "big")
            if len(self._rest) < end:
                return
            message = self._rest[:head], self._rest[head + 4 : end]
            self._rest = self._rest[end:]
            yield message


class StatementFault(Filter):
    """Recognises statements in the PostgreSQL protocol, and ends the connection at the armed one.

    https://www.postgresql.org/docs/current/protocol-message-formats.html
    """

    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy
        self._client, self._server = Messages(), Messages()
        self._client.untyped = True
        self._answer_is_lost = False
        self._encrypted = False

    def from_client(self, data: bytes) -> bytes:
        if self._encrypted:
            return data
        for kind, body in self._client.feed(data):
            if kind == b"":
                self._start_up(int.from_bytes(body[:4], "big"))
            elif (fault := self._proxy.fault_for(self._statement(kind, body))) is not None:
                if fault == "refused":
                    raise EndOfLink
                if fault == "stranded":
                    raise EndOfLink(held=data)
                self._answer_is_lost = True
        return data

    def from_server(self, data: bytes) -> bytes:
        if self._encrypted:
            return data
        for kind, body in self._server.feed(data):
            if kind == b"" and body in (b"S", b"G"):
                self._encrypted = True
            elif kind == b"Z" and self._answer_is_lost:  # ReadyForQuery
                raise EndOfLink
        return b"" if self._answer_is_lost else data

    def _start_up(self, code: int) -> None:
        if code in (SSL_REQUEST, GSS_REQUEST):
            self._server.single_bytes += 1
        elif code != CANCEL_REQUEST:
            self._client.untyped = False

    @staticmethod
    def _statement(kind: bytes, body: bytes) -> str | None:
        if kind == b"Q":
            return body.rstrip(b"\0").decode(errors="replace")
        if kind == b"P":  # Parse: the statement's name, then its text
            return body.split(b"\0")[1].decode(errors="replace")
        return None


class Link:
    """One client's connection and the one to the server that belongs to it."""

    def __init__(self, proxy: Proxy, client: socket.socket) -> None:
        self._proxy = proxy
        self._client = client
        self._server = socket.socket()
        self._server.setblocking(False)
        self._filter: Filter = StatementFault(proxy)
        self.reset = False
        self.task = asyncio.ensure_future(self._run())

    async def _run(self) -> None:
        tasks: list[asyncio.Future[None]] = []
        keep_server = False
        try:
            if self._proxy.mode == "deaf":
                await asyncio.Event().wait()
            loop = asyncio.get_running_loop()
            await loop.sock_connect(self._server, self._proxy.target)
            for one in (self._client, self._server):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            up: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(64)
            down: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(64)
            tasks += [
                asyncio.ensure_future(self._receive(self._client, up, self._filter.from_client)),
                asyncio.ensure_future(self._deliver(up, self._server)),
                asyncio.ensure_future(self._receive(self._server, down, self._filter.from_server)),
                asyncio.ensure_future(self._deliver(down, self._client)),
            ]
            await asyncio.gather(*tasks)
        except EndOfLink as end:
            if end.held is not None:
                keep_server = True
                self._proxy.stranded.append((self._server, end.held))
        except OSError:
            self.reset = True
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            close_socket(self._client, reset=self.reset)
            if not keep_server:
                close_socket(self._server, reset=self.reset)
            self._proxy.links.discard(self)

    async def _receive(
        self,
        source: socket.socket,
        queue: asyncio.Queue[tuple[float, bytes]],
        look: Callable[[bytes], bytes],
    ) -> None:
        loop = asyncio.get_running_loop()
        while data := await loop.sock_recv(source, 65536):
            if passed := look(data):
                await queue.put((loop.time() + self._proxy.delay, passed))
        await queue.put((loop.time() + self._proxy.delay, b""))

    async def _deliver(
        self, queue: asyncio.Queue[tuple[float, bytes]], sink: socket.socket
    ) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due, data = await queue.get()
            if (early := due - loop.time()) > 0:
                await asyncio.sleep(early)
            await self._proxy.thawed.wait()
            if not data:
                sink.shutdown(socket.SHUT_WR)
                return
            await loop.sock_sendall(sink, data)


def close_socket(closed: socket.socket, *, reset: bool) -> None:
    with contextlib.suppress(OSError):
        if reset:
            closed.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        else:
            # Sends FIN even where bytes that nobody has read would turn close() into RST.
            closed.shutdown(socket.SHUT_WR)
    closed.close()


class Proxy:
    """The listening side, and the methods ``do_*`` that the test commands."""

    def __init__(self, target: tuple[str, int], port: int) -> None:
        self.target = target
        self.mode = "down"
        self.delay = 0.0
        self.thawed = asyncio.Event()
        self.links: set[Link] = set()
        self.stranded: list[tuple[socket.socket, bytes]] = []
        self._port = port
        self._listener: socket.socket | None = None
        self._connects: list[float] = []
        self._fault: tuple[re.Pattern[str], StatementFaultKind] | None = None
        self._fault_times = 0
        self._triggered = 0

    def fault_for(self, statement: str | None) -> StatementFaultKind | None:
        if statement is None or self._fault is None or self._fault_times == 0:
            return None
        pattern, kind = self._fault
        if pattern.match(statement.lstrip()) is None:
            return None
        self._fault_times -= 1
        self._triggered += 1
        return kind

    def _accept(self) -> None:
        assert self._listener is not None
        with contextlib.suppress(BlockingIOError):
            while True:
                client, _ = self._listener.accept()
                client.setblocking(False)
                self._connects.append(time.monotonic())
                self.links.add(Link(self, client))

    def _listen(self) -> None:
        if self._listener is None:
            self._listener = socket.socket()
            self._listener.setblocking(False)
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._listener.bind((FaultProxy.host, self._port))
            self._listener.listen(128)
            asyncio.get_running_loop().add_reader(self._listener, self._accept)

    async def do_forward(self) -> None:
        self.mode = "forward"
        self.thawed.set()
        self._listen()

    async def do_deaf(self) -> None:
        await self.do_forward()
        self.mode = "deaf"

    async def do_freeze(self) -> None:
        await self.do_forward()
        self.mode = "frozen"
        self.thawed.clear()

    async def do_down(self) -> None:
        self.mode = "down"
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener)
            self._listener.close()
            self._listener = None

    async def do_delay(self, seconds: float) -> None:
        self.delay = seconds

    async def do_cut(self, reset: bool) -> int:
        links = list(self.links)
        for link in links:
            link.reset = reset
            link.task.cancel()
        await asyncio.gather(*(link.task for link in links), return_exceptions=True)
        self.links.difference_update(links)
        for kept, _ in self.stranded:
            close_socket(kept, reset=reset)
        self.stranded.clear()
        return len(links)

    async def do_retarget(self, host: str, port: int) -> None:
        self.target = (host, port)

    async def do_fault(self, pattern: str, kind: StatementFaultKind, times: int) -> None:
        self._fault = re.compile(pattern, re.IGNORECASE), kind
        self._fault_times = times

    async def do_release(self) -> int:
        released = [one for one in self.stranded if one[1]]
        self.stranded = [(kept, b"") for kept, _ in self.stranded]
        for kept, held in released:
            with contextlib.suppress(OSError):
                await asyncio.get_running_loop().sock_sendall(kept, held)
        return len(released)

    async def do_triggered(self) -> int:
        return self._triggered

    async def do_connects(self) -> list[float]:
        return self._connects

    async def do_established(self) -> int:
        return len(self.links)


async def serve(host: str, port: int, listen: int) -> None:
    proxy = Proxy((host, port), listen)
    await proxy.do_forward()
    commands = asyncio.StreamReader(limit=2**20)
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(commands), sys.stdin
    )
    sys.stdout.write("[null, null]\n")
    sys.stdout.flush()
    # The end of the pipe is the end of the test, however it came about.
    while line := await commands.readline():
        command, arguments = json.loads(line)
        method: Callable[..., Awaitable[Any]] = getattr(proxy, f"do_{command}")
        try:
            answer = [None, await method(**arguments)]
        except Exception as error:
            answer = [f"{type(error).__name__}: {error}", None]
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
    await proxy.do_down()
    await proxy.do_cut(reset=False)


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
