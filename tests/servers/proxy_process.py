"""The process of fault proxies: passes bytes on, and obeys the commands of ``FaultProxy``."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import selectors
import socket
import struct
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.servers.login_refusal import LoginRefusal
from tests.servers.statement_faults import EndOfLink, Fault, StatementFault, statements

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

HOST = "127.0.0.1"


class Link:
    """One client's connection and the one to the server that belongs to it."""

    def __init__(self, proxy: Proxy, client: socket.socket) -> None:
        self._proxy = proxy
        self._client = client
        self._server = socket.socket()
        self._server.setblocking(False)
        self._filter = StatementFault(self._fault_for)
        self._up: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(64)
        self._down: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(64)
        self.reset = False
        self.forgotten = False
        self.is_silent = False
        self.hung_up = asyncio.Event()
        self._client_was_last = False
        self.task = asyncio.ensure_future(self._run())

    async def _run(self) -> None:
        tasks: list[asyncio.Future[None]] = []
        end: EndOfLink | None = None
        keep_server = False
        try:
            if self._proxy.mode == "deaf":
                await asyncio.Event().wait()
            if self._proxy.refusal is not None:
                await self._proxy.refusal.tell(self._client)
                return
            await self._proxy.awake.wait()
            loop = asyncio.get_running_loop()
            await loop.sock_connect(self._server, self._proxy.target)
            for one in (self._client, self._server):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            tasks += [
                asyncio.ensure_future(coroutine)
                for coroutine in (
                    self._receive(self._client, self._up, self._count_from_client),
                    self._deliver(self._up, self._server),
                    self._receive(self._server, self._down, self._count_from_server),
                    self._deliver(self._down, self._client),
                )
            ]
            await asyncio.gather(*tasks)
        except EndOfLink as found:
            end = found
        except OSError:
            self.reset = True
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            try:
                if end is not None:
                    await self._flush(self._up, self._server, end.to_server)
                    await self._flush(self._down, self._client, end.to_client)
                    if end.held is not None:
                        keep_server = True
                        self._proxy.kept.append(Kept(self._server, end.held, loop.time()))
                    await self._keep_silence(end.silence)
            finally:
                close_socket(self._client, reset=self.reset)
                if not keep_server:
                    close_socket(self._server, reset=self.reset)
                self._proxy.links.discard(self)

    def _fault_for(self, text: str, backend_pid: int) -> Fault | None:
        fault = self._proxy.fault_for(text, backend_pid)
        # From when it is known to be hit.
        self.is_silent = fault is not None and fault.kind in ("stranded", "swallowed")
        return fault

    async def _keep_silence(self, seconds: float) -> None:
        hung_up = asyncio.ensure_future(self.hung_up.wait())
        try:
            await asyncio.wait([hung_up], timeout=seconds)
        finally:
            hung_up.cancel()

    def _count_from_client(self, data: bytes) -> bytes:
        # However many pieces the network makes of a message.
        self._proxy.round_trips += not self._client_was_last
        self._client_was_last = True
        return self._filter.from_client(data)

    def _count_from_server(self, data: bytes) -> bytes:
        self._client_was_last = False
        return self._filter.from_server(data)

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
            if self.forgotten:
                await asyncio.Event().wait()
            if not data:
                sink.shutdown(socket.SHUT_WR)
                return
            await loop.sock_sendall(sink, data)

    @staticmethod
    async def _flush(
        queue: asyncio.Queue[tuple[float, bytes]], sink: socket.socket, last: bytes
    ) -> None:
        """Send what is still on its way in this direction, and then the last of it."""
        while not queue.empty():
            last = queue.get_nowait()[1] + last
        if last:
            with contextlib.suppress(OSError):
                await asyncio.get_running_loop().sock_sendall(sink, last)


@dataclass
class Kept:
    """The server's side of a connection whose client's side has come to an end."""

    server: socket.socket
    held: bytes
    since: float


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
        self.awake = asyncio.Event()
        self.awake.set()
        self.wakes_within = 0.0
        self.refusal: LoginRefusal | None = None
        self.links: set[Link] = set()
        self.kept: list[Kept] = []
        self.round_trips = 0
        self._port = port
        self._wakes = False
        self._listener: socket.socket | None = None
        self._connects: list[float] = []
        self._armed: dict[int, tuple[re.Pattern[str], Fault]] = {}
        self._times: dict[int, int] = {}
        self._hits: list[tuple[int, int, float]] = []

    def fault_for(self, text: str, backend_pid: int) -> Fault | None:
        if not self._armed:
            return None
        found = list(statements(text))
        for number, (pattern, fault) in self._armed.items():
            if any(pattern.match(statement) for statement in found):
                self._times[number] -= 1
                if not self._times[number]:
                    del self._armed[number]
                self._hits.append((number, backend_pid, time.monotonic()))
                return fault
        return None

    def _accept(self) -> None:
        assert self._listener is not None
        with contextlib.suppress(BlockingIOError):
            while True:
                client, _ = self._listener.accept()
                client.setblocking(False)
                self._connects.append(time.monotonic())
                if not self.awake.is_set() and not self._wakes:
                    self._wakes = True
                    asyncio.get_running_loop().call_later(self.wakes_within, self.awake.set)
                self.links.add(Link(self, client))

    def _listen(self) -> None:
        if self._listener is None:
            self._listener = socket.socket()
            self._listener.setblocking(False)
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._listener.bind((HOST, self._port))
            self._listener.listen(128)
            asyncio.get_running_loop().add_reader(self._listener, self._accept)

    def _take(self, older_than: float) -> list[Kept]:
        until = asyncio.get_running_loop().time() - older_than
        return [kept for kept in self.kept if kept.since <= until]

    async def do_forward(self) -> None:
        self.mode = "forward"
        self.refusal = None
        self.thawed.set()
        self.awake.set()
        self._listen()

    async def do_deaf(self) -> None:
        await self.do_forward()
        self.mode = "deaf"

    async def do_freeze(self) -> None:
        await self.do_forward()
        self.mode = "frozen"
        self.thawed.clear()

    async def do_refuse_logins(self, message: str, sqlstate: str) -> None:
        await self.do_forward()
        self.refusal = LoginRefusal(message, sqlstate)

    async def do_suspend(self, wakes_within: float) -> int:
        self.awake.clear()
        self.wakes_within, self._wakes = wakes_within, False
        return await self.do_cut(reset=False)

    async def do_forget(self) -> int:
        for link in self.links:
            link.forgotten = True
        return len(self.links)

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
        for kept in self.kept:
            close_socket(kept.server, reset=reset)
        self.kept.clear()
        return len(links)

    async def do_retarget(self, host: str, port: int) -> None:
        self.target = (host, port)

    async def do_fault(self, pattern: str, times: int, fault: dict[str, Any]) -> int:
        number = len(self._times) + 1
        self._times[number] = times
        self._armed[number] = re.compile(pattern, re.IGNORECASE | re.DOTALL), Fault(**fault)
        return number

    async def do_disarm(self) -> None:
        self._armed.clear()

    async def do_release(self, older_than: float) -> int:
        released = [kept for kept in self._take(older_than) if kept.held]
        for kept in released:
            held, kept.held = kept.held, b""
            with contextlib.suppress(OSError):
                await asyncio.get_running_loop().sock_sendall(kept.server, held)
        return len(released)

    async def do_abandon(self, older_than: float) -> int:
        abandoned = self._take(older_than)
        for kept in abandoned:
            close_socket(kept.server, reset=False)
            self.kept.remove(kept)
        return len(abandoned)

    async def do_hang_up(self) -> int:
        silent = [link for link in self.links if link.is_silent]
        for link in silent:
            link.hung_up.set()
        await asyncio.gather(*(link.task for link in silent), return_exceptions=True)
        return len(silent)

    async def do_triggered(self) -> int:
        return len(self._hits)

    async def do_hits(self) -> list[tuple[int, int, float]]:
        return self._hits

    async def do_round_trips(self) -> int:
        return self.round_trips

    async def do_connects(self) -> list[float]:
        return self._connects

    async def do_established(self) -> int:
        return len(self.links)

    async def do_close(self) -> None:
        await self.do_down()
        await self.do_cut(reset=False)


async def obey(proxies: dict[int, Proxy], port: int, command: str, arguments: Any) -> Any:
    """Have the proxy that listens on a port obey a command."""
    if command == "open":
        proxy = Proxy((arguments["host"], arguments["port"]), port)
        await proxy.do_forward()
        proxies[port] = proxy
        return None
    method: Callable[..., Awaitable[Any]] = getattr(proxies[port], f"do_{command}")
    answer = await method(**arguments)
    if command == "close":
        del proxies[port]
    return answer


async def serve() -> None:
    """Obey what comes in by standard input."""
    proxies: dict[int, Proxy] = {}
    commands = asyncio.StreamReader(limit=2**20)
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(commands), sys.stdin
    )
    # The end of the pipe is the end of the tests, however it came about.
    while line := await commands.readline():
        try:
            answer = [None, await obey(proxies, *json.loads(line))]
        except Exception as error:
            answer = [f"{type(error).__name__}: {error}", None]
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
    for proxy in proxies.values():
        await proxy.do_close()


if __name__ == "__main__":
    # select() keeps time to the microsecond, where epoll() rounds up to milliseconds.
    loop = asyncio.SelectorEventLoop(selectors.SelectSelector())
    loop.run_until_complete(serve())
