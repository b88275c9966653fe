"""The socket on which a process reports its pools, and takes orders."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import socket
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from django_pooled.activity import start_thread
from django_pooled.diagnostics.log_fields import event_fields
from django_pooled.diagnostics.redaction import stand_in, told

from . import socket_folder, standing_pause
from .history import KEPT, History
from .orders import LONGEST_ORDER, ORDER, REFUSED, Answer, Order, OrderRefused, parse_order

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from .snapshot import PoolSnapshot, ProcessReport
    from .socket_folder import Peer, StrPath

    Obey = Callable[[Order, str], list[Answer]]
    """Obeys an order of somebody, and returns what became of it in each pool."""

__all__ = ["BACKLOG", "HISTORY", "NOW", "SESSIONS", "AnsweringSocket", "default_folder"]

T = TypeVar("T")

logger = logging.getLogger("django_pooled.publish")

BACKLOG = 16
"""Readers that may queue for an answer."""

PATIENCE = 1.0
"""Seconds: how long a reader that does not read may hold up the others."""

RENEWAL = 1.0
"""Seconds by which a pause has to last longer, before that is left for others again."""

QUESTION = 0.1
"""Seconds in which a reader says what it wants."""

NOW, HISTORY, SESSIONS = b"now\n", b"history\n", b"sessions\n"
"""What it may want: the pools as they are, the last minutes too, or whose sessions a full server
has, which lets no reader in: those that are known, and a new look for the next question."""

_PASSING = {errno.ECONNABORTED, errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


def default_folder(folder: StrPath | None) -> Path:
    """Return the folder that this process publishes in, created and found private.

    Args:
        folder: The ``stats_dir`` option, or None for the default folder.

    Raises:
        OSError: None of the candidates can be used; the message is the first one's reason. Or
            the platform has no such sockets.
    """
    socket_folder.require()
    return _first_usable(folder, lambda path, descriptor: path)


def _first_usable(folder: StrPath | None, use: Callable[[Path, int], T]) -> T:
    """Call a function with path and descriptor of the first candidate in which it succeeds."""
    reason: OSError | None = None
    for path in socket_folder.candidates(folder, os.geteuid()):
        try:
            descriptor = socket_folder.prepare(path)
            try:
                return use(path, descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            reason = reason or error
    assert reason is not None
    raise reason


class AnsweringSocket:
    """A listening socket, its name in the folder, and the thread that answers on it.

    No lock guards the fields: what changes after the start is that thread's alone.
    """

    def __init__(
        self,
        folder: StrPath | None,
        report: Callable[[], ProcessReport],
        site: str,
        look: Callable[[float], list[PoolSnapshot]] | None,
        look_at_servers: Callable[[], object],
        obey: Obey | None,
    ) -> None:
        socket_folder.require()
        self.report = report
        self.look_at_servers = look_at_servers
        self.obey = obey
        self.history = History(look) if look is not None else None
        self.look_at = time.monotonic()
        """When the next look is due."""
        self.looking = threading.Lock()
        """Held while a thread of its own looks whose sessions the servers have."""
        self.pid = os.getpid()
        self.closed = threading.Event()
        self.pause_left_until = 0.0
        """When the pause ends that was last left for processes that start meanwhile."""
        self.listener, self.path = _first_usable(folder, partial(_listen, site))
        try:
            start_thread(self.serve, "django_pooled.publish")
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Take the socket and its name away, and end the thread."""
        self.closed.set()
        with contextlib.suppress(OSError):
            self.path.unlink()
        # Closing alone does not wake a thread that is blocked in accept().
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()

    def serve(self) -> None:
        """Answer readers until the socket is closed; in a thread of its own."""
        _sweep(self.path.parent)
        while not self.closed.is_set():
            try:
                connection = self.accept()
            except OSError as error:
                if os.getpid() != self.pid:
                    # Greenlets survive a fork, but threading no longer knows this one, and
                    # would complain if it ended.
                    threading.Event().wait()  # pragma: no cover - coverage does not follow there
                if error.errno not in _PASSING:
                    return
                # Out of file descriptors, accept() fails at once for as long as it lasts.
                self.closed.wait(PATIENCE)
                continue
            if connection is None:
                continue
            with connection:
                try:
                    self.answer(connection)
                except OSError as error:
                    logger.debug(
                        "a reader of the pool statistics went away: %s",
                        told(error),
                        extra=event_fields("reader_gone", error=error),
                    )

    def accept(self) -> socket.socket | None:
        """Wait for a reader; None if a look at the pools was due first."""
        if self.history is None or os.getpid() != self.pid:
            return self.listener.accept()[0]
        # Readers that come again and again must not put it off.
        if (left := self.look_at - time.monotonic()) > 0:
            self.listener.settimeout(left)
            with contextlib.suppress(TimeoutError):
                return self.listener.accept()[0]
        try:
            self.history.sample()
        except Exception as error:
            # As with a report, the thread has to survive.
            _log_failure(error)
        self.look_at = time.monotonic() + self.history.pause
        return None

    def answer(self, connection: socket.socket) -> None:
        """Answer one reader, or operator."""
        peer = socket_folder.peer_of(connection)
        if peer is not None and peer.uid not in (0, os.geteuid()):
            logger.debug(
                "user %d may not read the pool statistics",
                peer.uid,
                extra=event_fields("reader_refused", uid=peer.uid),
            )
            return
        asked = _question(connection)
        more = {}
        if asked.startswith(ORDER):
            more["order"] = json.dumps(self.obeyed(asked, connection, peer)).encode()
        elif asked.startswith(SESSIONS):
            self.begin_to_look()
        elif asked.startswith(HISTORY) and self.history is not None:
            more["history"] = self.history.encoded(time.time() - KEPT)
        answer = _encode(self.report)
        if answer.endswith(b"}"):
            for name, value in more.items():
                answer = answer[:-1] + f', "{name}": '.encode() + value + b"}"
        connection.settimeout(PATIENCE)
        connection.sendall(answer)

    def obeyed(self, line: bytes, connection: socket.socket, peer: Peer | None) -> dict[str, Any]:
        """Obey an order; return why it was refused, or what became of it in each pool."""
        by = "an unknown user" if peer is None else f"user {peer.uid}"
        if peer is not None and peer.pid:
            by += f" (process {peer.pid})"
        answers: list[Answer] = []
        refusal = ""
        try:
            order = parse_order(line)
            if self.obey is None:
                raise OrderRefused("this process takes no orders")
            if _has_gone(connection) and not order.undoes:
                # It has given up: this process was stopped, perhaps, and the order is an old one.
                raise OrderRefused("its operator has gone")
            answers = self.obey(order, by)
            self.note_pause(order, by, answers)
        except OrderRefused as refused:
            refusal = str(refused)
        except Exception as error:
            # The thread has to survive it.
            _log_failure(error)
            refusal = f"the process failed to obey: {type(error).__name__}"
        if refusal:
            logger.warning(
                "an order of %s was refused: %s",
                *(by, refusal),
                extra=event_fields("order_not_taken", by=by, reason=refusal),
            )
        return {"refusal": refusal, "answers": [answer._asdict() for answer in answers]}

    def note_pause(self, order: Order, by: str, answers: list[Answer]) -> None:
        """Leave a pause for processes that start meanwhile, or take it away."""
        folder, outcomes = self.path.parent, {answer.outcome for answer in answers}
        try:
            # Also where nothing was paused: a pool that is just being made looks again.
            if order.verb == "resume" and REFUSED not in outcomes:
                self.pause_left_until = 0.0
                standing_pause.remove(folder, order.site, order.token)
            elif order.stands and outcomes - {REFUSED}:
                until = time.monotonic() + order.seconds
                # It may be renewed many times a second.
                if not 0.0 <= until - self.pause_left_until < RENEWAL:
                    self.pause_left_until = until
                    standing_pause.leave(folder, order, by)
        except OSError as error:
            _log_no_standing_pause(error)

    def standing_pause(self, site: str) -> tuple[Order, str] | None:
        """Return the pause of a site that was left for processes, and who has ordered it."""
        try:
            return standing_pause.find(self.path.parent, site)
        except OSError as error:
            _log_no_standing_pause(error)
            return None

    def begin_to_look(self) -> None:
        """Find out whose sessions the servers have, for the next question."""
        # It waits for a connection, behind the threads of the site: no reader waits for that.
        if self.looking.acquire(blocking=False):
            try:
                start_thread(self.look, "django_pooled.looks")
            except RuntimeError as error:
                # No thread can be started.
                self.looking.release()
                _log_failure(error)

    def look(self) -> None:
        """Look whose sessions the servers have; in a thread of its own."""
        try:
            self.look_at_servers()
        except Exception as error:
            _log_failure(error)
        finally:
            self.looking.release()


def _question(connection: socket.socket) -> bytes:
    """Return what a reader wants; nothing, if it does not say."""
    asked, until = b"", time.monotonic() + PATIENCE
    with contextlib.suppress(TimeoutError):
        # A reader of an earlier version sends none.
        connection.settimeout(QUESTION)
        asked = connection.recv(64)
        # Of an order, all of its line.
        while (
            asked.startswith(ORDER)
            and not asked.endswith(b"\n")
            and len(asked) <= LONGEST_ORDER
            and time.monotonic() < until
            and (more := connection.recv(4096))
        ):
            asked += more
    return asked


def _has_gone(connection: socket.socket) -> bool:
    """Whether the other end is closed."""
    connection.settimeout(0.0)
    try:
        return not connection.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except OSError:
        return True


def _listen(site: str, folder: Path, descriptor: int) -> tuple[socket.socket, Path]:
    """Listen on a socket in a folder; return it and its path."""
    limit = socket_folder.SUN_PATH_LIMIT
    path = folder / socket_folder.socket_name(os.getpid(), site)
    if len(os.fsencode(path)) > limit:
        # Its answer names the site too.
        path = folder / socket_folder.socket_name(os.getpid())
    length = len(os.fsencode(path))
    if length > limit:
        reason = f"a socket's path may have {limit} bytes, and this one has {length}"
        raise OSError(errno.ENAMETOOLONG, reason, os.fspath(path))
    # A socket that is bound and does not listen yet refuses connections, just as one of a
    # dead process does: it gets the name that readers look for once it listens.
    unfinished = path.with_suffix(".new")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(os.fspath(unfinished))
        listener.listen(BACKLOG)
        os.rename(unfinished.name, path.name, src_dir_fd=descriptor, dst_dir_fd=descriptor)
    except OSError:
        listener.close()
        # On a read-only file system there is nothing to be removed.
        with contextlib.suppress(OSError):
            os.unlink(unfinished.name, dir_fd=descriptor)
        raise
    return listener, path


def _encode(report: Callable[[], ProcessReport]) -> bytes:
    try:
        return json.dumps(report().as_json()).encode()
    except Exception as error:
        # The thread has to survive an error in one report.
        _log_failure(error)
        return json.dumps({"pid": os.getpid(), "error": f"{type(error).__name__}"}).encode()


def _log_no_standing_pause(error: OSError) -> None:
    logger.debug(
        "processes that start do not learn of a pause: %s",
        told(error),
        extra=event_fields("pause_not_left", error=error),
    )


def _log_failure(error: Exception) -> None:
    logger.debug(
        "cannot collect the pool statistics",
        exc_info=stand_in(error),
        extra=event_fields("report_failed", error=error),
    )


def _sweep(folder: Path) -> None:
    """Remove sockets of dead processes, so that recycled workers don't pile them up."""
    try:
        descriptor = socket_folder.open_folder(folder, os.geteuid())
        try:
            for entry in socket_folder.entries(descriptor):
                # Living neighbours are not woken; their sockets are swept once they have ended.
                if not socket_folder.process_exists(entry.pid):
                    socket_folder.remove_abandoned(folder, descriptor, entry)
        finally:
            os.close(descriptor)
    except OSError as error:
        logger.debug(
            "cannot remove sockets of processes that have ended: %s",
            told(error),
            extra=event_fields("sweep_failed", error=error),
        )
