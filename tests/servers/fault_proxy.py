"""TCP proxies between client and server that fail on demand, in another process.

They can't be threads of the test's process: psycopg's C functions hold the GIL while they wait.
A proxy acknowledges what it receives, so a frozen connection never loses a packet as a broken
network does: keepalive and ``tcp_user_timeout`` see nothing of it.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, NamedTuple

from tests.servers.statement_faults import StatementFaultKind

__all__ = ["FaultProxy", "Hit", "ProxyProcess", "StatementFaultKind"]


class Hit(NamedTuple):
    """A statement that a fault befell."""

    fault: int
    """What ``fault_at`` returned."""
    backend_pid: int
    """Of the connection, as client and server know it."""
    at: float
    """``time.monotonic()``."""


class ProxyProcess:
    """A process in which proxies run; usable from several threads, one command at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._in_step = True
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.servers.proxy_process"],
            cwd=Path(__file__).resolve().parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            # Ctrl-C in the terminal is for the test run, which then closes the proxies.
            start_new_session=True,
        )

    @property
    def usable(self) -> bool:
        """Whether it lives, and no answer was given up by an exception."""
        return self._in_step and self._process.poll() is None

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """What it ended with; None while it lives."""
        return self._process.poll()

    def do(self, proxy: int, command: str, **arguments: Any) -> Any:
        """Have a proxy obey a command, and return its answer.

        Args:
            proxy: the port that it listens on.
            command: name of a method, without "do_".
            arguments: the method's arguments.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._lock:
            self._in_step = False
            self._process.stdin.write(json.dumps([proxy, command, arguments]) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
            if not line:
                raise RuntimeError(f"the proxy ended with {self._process.wait()}")
            self._in_step = True
        error, value = json.loads(line)
        if error is not None:
            raise RuntimeError(f"the proxy failed: {error}")
        return value

    def close(self) -> None:
        """End the process, all its proxies and their connections."""
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


class FaultProxy:
    """The test's side of a proxy, which commands it.

    Each command has taken effect when it returns. The port stays the same throughout.

    Args:
        host: the server's host.
        port: the server's port.
        listen: the proxy's own port on 127.0.0.1; outside the range of ephemeral ports, since
            it has to be had again after ``down()``.
        process: where it is to run, beside others; by default in a process of its own.
    """

    host = "127.0.0.1"

    def __init__(
        self, host: str, port: int, *, listen: int, process: ProxyProcess | None = None
    ) -> None:
        self.port = listen
        self.process = process or ProxyProcess()
        self._has_a_process = process is None
        self._closed = False
        self._do("open", host=host, port=port)

    def forward(self) -> None:
        """Listen and pass everything on: the end of ``freeze`` and of all for new connections."""
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

    def refuse_logins(self, message: str, sqlstate: str = "28000") -> None:
        """Refuse new connections in these words, as the server would, until ``forward()``."""
        self._do("refuse_logins", message=message, sqlstate=sqlstate)

    def suspend(self, wakes_within: float) -> int:
        """Close all connections, and return how many there were; new ones have to wait.

        The first of them wakes what is behind, which takes *wakes_within* seconds.
        """
        return int(self._do("suspend", wakes_within=wakes_within))

    def forget(self) -> int:
        """Pass nothing more on established connections, which stay open; return how many.

        As a load balancer does with those that were idle for too long. New ones are served.
        """
        return int(self._do("forget"))

    def delay(self, seconds: float) -> None:
        """Hold back every chunk for ``seconds``, each way."""
        self._do("delay", seconds=seconds)

    def cut(self, *, reset: bool = False) -> int:
        """Close all established connections, with RST or FIN, and return how many there were."""
        return int(self._do("cut", reset=reset))

    def retarget(self, host: str, port: int) -> None:
        """Lead new connections to another server, as a failover does."""
        self._do("retarget", host=host, port=port)

    def fault_at_commit(self, kind: StatementFaultKind, **more: Any) -> int:
        """Arm ``fault_at`` for COMMIT."""
        return self.fault_at(r"COMMIT\b(?!\s+PREPARED)", kind, **more)

    def fault_at(
        self,
        pattern: str,
        kind: StatementFaultKind,
        *,
        times: int = 1,
        messages: int = 0,
        octets: int = 0,
        silence: float = 0.0,
        message: str = "",
        sqlstate: str = "XX000",
    ) -> int:
        """Lose the connection at the next messages with such a statement, on any connection.

        A message of several statements is hit as a whole, wherever in it the statement stands.
        Faults that are armed at the same time are tried in the order in which they were armed.

        Args:
            pattern: regular expression for the statement's beginning, in any case of letters.
            kind: what happens.

                ========== ============== ======================= ==========================
                kind       the server     the client              then
                ========== ============== ======================= ==========================
                refused    never gets it  is cut off              both sides are closed
                cut        gets it        is cut off at once      both sides are closed
                answer_lost has answered  sees ``messages`` and   both sides are closed
                                          ``octets`` of it
                stranded   waits for it   hears nothing for       its side alone is closed,
                                          ``silence`` seconds     see ``release``, ``abandon``
                swallowed  gets it        as with "stranded"      as with "stranded"
                ========== ============== ======================= ==========================

            times: how many messages are hit.
            messages: how many messages of the answer the client sees; at most all but the last.
            octets: how many bytes of the answer it sees after those; at most all but the last.
            silence: seconds for which the client's side of a black hole stays open.
            message: what the client of a "refused" statement or of an "answer_lost" is told at
                last, as a FATAL error.
            sqlstate: that error's.

        Returns:
            The number by which ``hits`` names this fault.
        """
        fault = {
            "kind": kind,
            "messages": messages,
            "octets": octets,
            "silence": silence,
            "message": message,
            "sqlstate": sqlstate,
        }
        return int(self._do("fault", pattern=pattern, times=times, fault=fault))

    def disarm(self) -> None:
        """Forget the faults that have hit nothing yet."""
        self._do("disarm")

    def release(self, *, older_than: float = 0.0) -> int:
        """Send what was "stranded" on to the server, and return how many messages that were.

        Args:
            older_than: only what waits for so many seconds.
        """
        return int(self._do("release", older_than=older_than))

    def abandon(self, *, older_than: float = 0.0) -> int:
        """Close the server's side of what was "stranded" or "swallowed"; return how many."""
        return int(self._do("abandon", older_than=older_than))

    def hang_up(self) -> int:
        """Close the client's side of what was "stranded" or "swallowed"; return how many."""
        return int(self._do("hang_up"))

    def triggered(self) -> int:
        """Return how many messages were hit so far."""
        return int(self._do("triggered"))

    def hits(self) -> list[Hit]:
        """Return what was hit so far, in order."""
        return [Hit(*hit) for hit in self._do("hits")]

    def round_trips(self) -> int:
        """Return how often a client has sent something after the server had.

        What starts and ends a connection counts, too.
        """
        return int(self._do("round_trips"))

    def connects(self) -> list[float]:
        """Return ``time.monotonic()`` of each connection accepted so far."""
        return list(self._do("connects"))

    def established(self) -> int:
        """Return how many clients are connected at present."""
        return int(self._do("established"))

    def close(self) -> None:
        """End the proxy and all its connections."""
        if self._has_a_process:
            self.process.close()
        elif self.process.usable and not self._closed:
            self._do("close")
        self._closed = True

    def __enter__(self) -> FaultProxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _do(self, command: str, **arguments: Any) -> Any:
        return self.process.do(self.port, command, **arguments)
