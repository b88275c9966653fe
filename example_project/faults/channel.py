"""How the site's workers reach the ``serve`` that runs them: lines of JSON over a Unix socket."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import socketserver
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

VARIABLE = "EXAMPLE_CONTROL"
"""Tells the workers where the socket is; unset where ``serve`` takes no orders."""
PATIENCE = 5.0
"""Seconds that ``serve`` has to answer; it only notes what is to be done."""


class Unreachable(Exception):
    """No ``serve`` that takes orders runs this process."""


class Line:
    """One end of a connection."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._reader = connection.makefile("r", encoding="utf-8")
        self._sending = threading.Lock()

    def send(self, message: dict[str, Any]) -> None:
        """Send one message; threads may take turns."""
        with self._sending:
            self._connection.sendall(json.dumps(message).encode() + b"\n")

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield what the other end says, until it hangs up."""
        # A process that is killed hangs up less politely.
        with contextlib.suppress(ConnectionError):
            for line in self._reader:
                yield json.loads(line)


@contextlib.contextmanager
def dial(timeout: float | None = None) -> Iterator[Line]:
    """Connect to the ``serve`` that runs this process.

    Raises:
        Unreachable: There is none, or it ended.
    """
    path = os.environ.get(VARIABLE)
    if not path:
        raise Unreachable("This site was not started by a serve that takes orders.")
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(timeout)
        try:
            connection.connect(path)
        except OSError as error:
            raise Unreachable("serve does not answer.") from error
        yield Line(connection)


def ask(**message: Any) -> dict[str, Any]:
    """Send one message and return the answer.

    Raises:
        Unreachable: Nobody answers.
    """
    try:
        with dial(PATIENCE) as line:
            line.send(message)
            for answer in line:
                return answer
    except OSError as error:
        raise Unreachable("serve does not answer.") from error
    raise Unreachable("serve hung up.")


class Switchboard(socketserver.ThreadingUnixStreamServer):
    """The end of ``serve``: each call has a thread of its own.

    Args:
        answer: Called with each call's line, until the caller hangs up.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self, answer: Callable[[Line], None]) -> None:
        # Only its owner may enter the folder. It is not the one that keeps the data, whose
        # path may be longer than a socket's may be.
        self._folder = tempfile.TemporaryDirectory(prefix="serve-")
        self._answer = answer
        self._lines: set[socket.socket] = set()
        self.path = Path(self._folder.name, "control")
        super().__init__(str(self.path), socketserver.BaseRequestHandler)
        threading.Thread(target=self.serve_forever, args=[0.05], daemon=True).start()

    def finish_request(self, request: Any, client_address: Any) -> None:
        self._lines.add(request)
        try:
            self._answer(Line(request))
        finally:
            self._lines.discard(request)

    def close(self) -> None:
        """Hang up on everybody, and be gone."""
        self.shutdown()
        self.server_close()
        for line in list(self._lines):
            with contextlib.suppress(OSError):
                line.shutdown(socket.SHUT_RDWR)
        self._folder.cleanup()
