"""What the fault proxy knows of PostgreSQL's protocol: where a statement passes, and its answer.

https://www.postgresql.org/docs/current/protocol-message-formats.html
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["EndOfLink", "Fault", "StatementFault", "StatementFaultKind", "fatal", "statements"]

StatementFaultKind = Literal["refused", "cut", "answer_lost", "stranded", "swallowed"]

SSL_REQUEST, GSS_REQUEST, CANCEL_REQUEST = 80877103, 80877104, 80877102

# What may hold a semicolon that ends no statement: strings, names, bodies, comments.
QUOTED = re.compile(
    r"""'[^']*' | "[^"]*" | (\$\w*\$).*?\1 | --[^\n]* | /\*.*?\*/""", re.VERBOSE | re.DOTALL
)


class Fault(NamedTuple):
    """What happens at a statement; see ``FaultProxy.fault_at``."""

    kind: StatementFaultKind
    messages: int = 0
    octets: int = 0
    silence: float = 0.0
    message: str = ""
    sqlstate: str = ""

    @property
    def words(self) -> bytes:
        """What a client is told at last."""
        return fatal(self.message, self.sqlstate) if self.message else b""


@dataclass(eq=False)
class EndOfLink(Exception):
    """Raised by a filter: close this connection now.

    Args:
        to_server: what the server is still sent.
        to_client: what the client is still sent.
        held: what the server's side waits for while it is kept open; None closes it, too.
        silence: seconds until the client's side is closed.
    """

    to_server: bytes = b""
    to_client: bytes = b""
    held: bytes | None = None
    silence: float = 0.0


def fatal(message: str, sqlstate: str) -> bytes:
    """Return what ends a session, with no more fields than poolers give it."""
    fields = {"S": "FATAL", "C": sqlstate, "M": message}
    told = b"".join(f"{name}{value}\0".encode() for name, value in fields.items()) + b"\0"
    return b"E" + (len(told) + 4).to_bytes(4, "big") + told


def statements(text: str) -> Iterator[str]:
    """Yield the statements of a query, without comments."""

    def kept(found: re.Match[str]) -> str:
        # No query holds a NUL, so it can stand for a semicolon that ends nothing.
        return "" if found[0][0] in "-/" else found[0].replace(";", "\0")

    for statement in QUOTED.sub(kept, text).split(";"):
        yield statement.strip().replace("\0", ";")


class Messages:
    """Cuts one direction of the protocol into messages (type, body)."""

    def __init__(self) -> None:
        #: What has arrived of the next message.
        self.rest = b""
        #: The next message has no type byte: a client's start-up packet.
        self.untyped = False
        #: Answers of one byte, without length, that come first: to SSLRequest and the like.
        self.single_bytes = 0

    def feed(self, data: bytes) -> Iterator[tuple[bytes, bytes]]:
        self.rest += data
        while self.rest:
            if self.single_bytes:
                self.single_bytes -= 1
                answer, self.rest = self.rest[:1], self.rest[1:]
                yield b"", answer
                continue
            head = 0 if self.untyped else 1
            if len(self.rest) < head + 4:
                return
            end = head + int.from_bytes(self.rest[head : head + 4], "big")
            if len(self.rest) < end:
                return
            message = self.rest[:head], self.rest[head + 4 : end]
            self.rest = self.rest[end:]
            yield message


class StatementFault:
    """Sees what passes on one connection, and ends it at the statement that a fault is armed for.

    Args:
        fault_for: called with a message's text and the backend's pid at each that has one.
    """

    def __init__(self, fault_for: Callable[[str, int], Fault | None]) -> None:
        self._fault_for = fault_for
        self._client, self._server = Messages(), Messages()
        self._client.untyped = True
        self._encrypted = False
        self._backend_pid = 0
        self._prepared: dict[bytes, str] = {}
        # Of ReadyForQuery, which ends the start-up and then the answer to each Query and Sync.
        self._due = 1
        self._lost: _LostAnswer | None = None

    def from_client(self, data: bytes) -> bytes:
        """Return what is to be passed on to the server."""
        if self._encrypted:
            return data
        for kind, body in self._client.feed(data):
            if kind == b"":
                self._start_up(int.from_bytes(body[:4], "big"))
                continue
            if self._lost is None and (text := self._executed(kind, body)) is not None:
                fault = self._fault_for(text, self._backend_pid)
                if fault is not None:
                    self._befall(fault, data)
            self._due += kind in (b"Q", b"S", b"F")
        return data

    def from_server(self, data: bytes) -> bytes:
        """Return what is to be passed on to the client."""
        if self._encrypted:
            return data
        passed = bytearray()
        for kind, body in self._server.feed(data):
            if kind == b"":
                self._encrypted = body in (b"S", b"G")
            elif kind == b"K":
                self._backend_pid = int.from_bytes(body[:4], "big")
            if self._lost is not None:
                try:
                    passed += self._lost.withhold(kind, body)
                except EndOfLink as end:
                    end.to_client = bytes(passed) + end.to_client
                    raise
            self._due -= kind == b"Z"
        return data if self._lost is None else bytes(passed)

    def _befall(self, fault: Fault, data: bytes) -> None:
        if fault.kind == "refused":
            raise EndOfLink(to_client=fault.words)
        if fault.kind == "cut":
            raise EndOfLink(to_server=data)
        if fault.kind == "stranded":
            raise EndOfLink(held=data, silence=fault.silence)
        if fault.kind == "swallowed":
            raise EndOfLink(to_server=data, held=b"", silence=fault.silence)
        self._lost = _LostAnswer(fault, answers_before=self._due, passed=len(self._server.rest))

    def _start_up(self, code: int) -> None:
        if code in (SSL_REQUEST, GSS_REQUEST):
            self._server.single_bytes += 1
        elif code != CANCEL_REQUEST:
            self._client.untyped = False

    def _executed(self, kind: bytes, body: bytes) -> str | None:
        """Return the text that this message has executed; None if it has none."""
        if kind == b"Q":
            return body.rstrip(b"\0").decode(errors="replace")
        if kind == b"P":  # Parse: the statement's name, then its text
            name, text, _ = body.split(b"\0", 2)
            if not name:
                return text.decode(errors="replace")
            self._prepared[name] = text.decode(errors="replace")
        if kind == b"B":  # Bind: the portal's name, then the statement's
            return self._prepared.get(body.split(b"\0", 2)[1])
        return None


class _LostAnswer:
    """Withholds the answer to one message until the server has given all of it.

    Args:
        fault: how much of it the client is to see.
        answers_before: how many answers to earlier messages are still to come.
        passed: how many bytes of the next message the client has already been sent.
    """

    def __init__(self, fault: Fault, answers_before: int, passed: int) -> None:
        self._fault = fault
        self._answers_before = answers_before
        self._passed = passed
        self._answer: list[bytes] = []

    def withhold(self, kind: bytes, body: bytes) -> bytes:
        """Take the server's next message; return what the client is to see of it."""
        message = (kind + (len(body) + 4).to_bytes(4, "big") + body)[self._passed :]
        self._passed = 0
        if self._answers_before:
            self._answers_before -= kind == b"Z"
            return message
        self._answer.append(message)
        if kind == b"Z":
            told = len(b"".join(self._answer[: self._fault.messages])) + self._fault.octets
            raise EndOfLink(to_client=b"".join(self._answer)[:-1][:told] + self._fault.words)
        return b""
