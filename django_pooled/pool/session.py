"""One session of the server: when it was opened and has to end, and why it must not be kept."""

from __future__ import annotations

import threading
from time import monotonic
from typing import TYPE_CHECKING, Any

from django_pooled.diagnostics.redaction import masked, one_line
from django_pooled.sql.sqlstates import CONNECTION_LOST

from .socket_check import look_at

if TYPE_CHECKING:
    from collections.abc import Callable

    import psycopg
    from psycopg.pq.abc import PGconn

    from django_pooled.stats.counters import Reason

    from .psycopg_private import Configuration
    from .slots import Slot

__all__ = ["Session"]

_RETIRED = float("-inf")


def _nowhere(counter: str, kind: str) -> None:
    """Count nothing: a connection without a pool."""


class Session:
    """What is known of one session of the server; each of its connection objects has it.

    Its user alone changes it, or the pool while it is idle; any thread may read it, and `doom` it:
    each field is written in one assignment. Only libpq's own memory needs a lock, `open`.

    It does not know them, so the notice handler below makes no reference cycle: a connection that
    is not referred to any more is freed at once.

    Args:
        pgconn: libpq's connection, which was just opened.
    """

    __slots__ = (
        "backend_pid",
        "cancelled_at",
        "clears_state",
        "closed_for",
        "configuration",
        "count",
        "doomed_by",
        "doomed_for",
        "expires_at",
        "goodbye",
        "idle_since",
        "is_committing",
        "is_interrupted",
        "is_readable",
        "learned",
        "open",
        "opened_at",
        "place",
        "slot",
        "time_limits",
        "was_written",
    )

    def __init__(self, pgconn: PGconn) -> None:
        self.open = threading.RLock()
        """Held by a thread that closes libpq's connection, which frees it, and by one that looks at
        it without being its user. Reentrant: a signal handler may look, or close."""
        self.opened_at: float = monotonic()
        self.idle_since: float = self.opened_at
        self.expires_at: float = float("inf")
        # Now, since a closed connection does not tell.
        self.backend_pid: int = pgconn.backend_pid
        self.place: tuple[str, int] = ("", 0)
        """Host and port of the server; kept, since a connection that was closed cannot tell."""
        self.is_readable: Callable[[], object] = look_at(pgconn.socket)
        """Tells whether the socket has something to read, or has ended."""
        self.closed_for: Reason | None = None
        """Why the pool closes it, once that is decided."""
        self.slot: Slot | None = None
        """Its slot of the pool, from the end of the attempt that opened it until it is closed."""
        self.doomed_by: str | None = None
        self.doomed_for: Reason = "error"
        """As what it is counted when it is closed for that."""
        self.goodbye: str | None = None
        """SQLSTATE with which the server ended the session, where it came as a notice."""
        self.learned: Any = None
        """What retry_transaction has learned of the session's server; kept for it, and not read."""
        self.configuration: Configuration | None = None
        """What every object of the session begins with, once it is configured."""
        self.was_written: bool = False
        """Whether the session, in another checkout, may have drawn from a sequence."""
        self.time_limits: dict[str, int] = {}
        """Time limits that the session has outside of transactions, in milliseconds, as last seen;
        0 for none."""
        self.is_committing: bool = False
        """Whether COMMIT is under way, alone or in a message with more, and not to be cancelled."""
        self.is_interrupted: bool = False
        """Whether what is under way was cancelled since the process ends."""
        self.cancelled_at: float | None = None
        """When the statement under way was cancelled, since the deadline had ended."""
        self.count: Callable[[str, str], object] = _nowhere
        """Counts what happens on it, for its pool."""
        self.clears_state: bool = False
        """Whether what statements leave in the session is cleared at the checkin."""

    def doom(self, reason: str, counts_as: Reason = "error") -> None:
        """Have the connection closed instead of kept when it comes back."""
        if self.doomed_by is None:
            # In this order: the reason is what others look for.
            self.doomed_for = counts_as
            self.doomed_by = one_line(masked(reason))

    def retire(self) -> None:
        """Have the connection closed as it comes back, since another has taken its place."""
        self.expires_at = _RETIRED

    @property
    def is_retired(self) -> bool:
        """Whether another connection has taken its place."""
        return self.expires_at == _RETIRED

    def notice(self, diagnostic: psycopg.errors.Diagnostic) -> None:
        """Take note of a server that ends an idle session: its error arrives as a notice.

        libpq: https://www.postgresql.org/docs/current/libpq-notice-processing.html
        """
        # Where all sessions end at once (an immediate shutdown, the crash of one), it is a WARNING.
        # PgBouncer has no severity but the one that others translate, and adds an error of its own
        # to that of a server.
        severity = diagnostic.severity_nonlocalized or diagnostic.severity
        if severity in ("FATAL", "PANIC") or diagnostic.sqlstate in CONNECTION_LOST:
            self.goodbye = self.goodbye or diagnostic.sqlstate
            self.doom(diagnostic.message_primary or "ended by the server")
