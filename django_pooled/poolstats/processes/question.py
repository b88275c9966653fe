"""One process that is asked for its report, over its socket."""

from __future__ import annotations

import contextlib
import errno
import socket
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from django_pooled.stats import answering_socket, socket_folder

from .report_parser import LARGEST_ANSWER, InvalidAnswer, parse_report

if TYPE_CHECKING:
    from django_pooled.stats.snapshot import ProcessReport
    from django_pooled.stats.socket_folder import Entry

    from .socket_folders import SocketFolder
    from .user_limits import UserLimits

__all__ = ["Question"]


class Question:
    """A question to the process that listens on a socket; its faults go to its user's limits.

    Args:
        folder: Where the socket is.
        descriptor: Of that folder, open.
        entry: The socket.
        limits: Of the folder's owner.
        what: `answering_socket.NOW`, `answering_socket.HISTORY` or `answering_socket.SESSIONS`.
    """

    def __init__(
        self,
        folder: SocketFolder,
        descriptor: int,
        entry: Entry,
        limits: UserLimits,
        what: bytes = answering_socket.NOW,
    ) -> None:
        self._what = what
        self.pid = entry.pid
        self.limits = limits
        self.silent = False
        """Whether the process is alive, and does not answer: it is stopped, or too busy."""
        self.until = 0.0
        """The monotonic moment at which it counts as silent."""
        self.client: socket.socket
        """From `ask` on."""
        self._folder, self._descriptor, self._entry = folder, descriptor, entry
        self._answer = bytearray()
        self._listener = 0
        """The pid of the process that listens, where the platform tells."""

    def ask(self, timeout: float) -> bool:
        """Connect, and tell whether there will be an answer."""
        path = self._folder.path / self._entry.name
        try:
            self.client = client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                client.setblocking(False)
                client.connect(socket_folder.reachable(path, self._descriptor))
                peer = socket_folder.peer_of(client)
            except BaseException:
                client.close()
                raise
        except OSError as error:
            if error.errno == errno.ECONNREFUSED:
                socket_folder.remove(self._descriptor, self._entry)
            elif error.errno == errno.EAGAIN:
                # Its queue is full of readers that it never answered.
                self.silent = True
            elif error.errno != errno.ENOENT:
                reason = error.strerror or error
                self.limits.complain(f"Process {self.pid} can't be asked: {reason}.")
            return False
        if peer is not None and peer.uid != self._folder.owner:
            self.client.close()
            self.limits.complain(
                f"The socket {path} is held by user {peer.uid} instead of "
                f"{self._folder.owner}, so its answer is not trusted."
            )
            return False
        with contextlib.suppress(OSError):
            # An earlier version may have answered without being told, and hung up.
            self.client.send(self._what)
        self._listener = peer.pid if peer else 0
        self.until = time.monotonic() + timeout
        self.limits.under_way += 1
        return True

    def read(self) -> bool:
        """Read what has arrived; tell whether that was all, or too much."""
        try:
            data = self.client.recv(65536)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:
            data = b""
        self._answer += data
        self.limits.take_bytes(len(data))
        return not data or len(self._answer) > LARGEST_ANSWER or self.limits.exhausted

    def close(self) -> None:
        """End the question, answered or not."""
        self.client.close()
        self.limits.under_way -= 1

    def give_up(self) -> None:
        """End the question without an answer."""
        self.close()
        if self._listener and not socket_folder.process_exists(self._listener):
            # A child that the process left behind still holds its listening socket open.
            socket_folder.remove(self._descriptor, self._entry)
        else:
            self.silent = True

    def report(self) -> ProcessReport | None:
        """Return the answer, or None if it can't be used."""
        if self.limits.exhausted:
            return None  # That was said of all.
        try:
            report = parse_report(bytes(self._answer))
            self.limits.take_pools(len(report.pools))
        except ValueError as error:
            invalid = isinstance(error, InvalidAnswer)
            if not invalid and socket_folder.remove_abandoned(
                self._folder.path, self._descriptor, self._entry
            ):
                return None  # The process ended while it answered.
            how = "answered nonsense:" if invalid else "gave an answer that"
            self.limits.complain(f"Process {self.pid} {how} {error}.")
            return None
        # The report may name another user than the owner of its socket.
        return replace(report, user=self._folder.owner)
