"""The psycopg connection that a pool holds, with what the pool has to remember of it."""

from __future__ import annotations

from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol

import psycopg

from .redaction import masked, one_line, scrub
from .sqlstates import CONNECTION_LOST

if TYPE_CHECKING:
    from collections.abc import Callable
    from weakref import ref

    from typing_extensions import Self

    from .record import Reason
    from .retry.riding import Rider
    from .retry.server_identity import Backend, KnownServer

__all__ = ["Life", "Owner", "PooledConnection"]


class Life:
    """When a connection was opened, has to go, became idle; and why it must not be kept.

    An object of its own, so that the notice handler below makes no reference cycle
    with the connection: a connection that nobody holds is then freed at once.
    """

    __slots__ = (
        "backend",
        "backend_pid",
        "closed_for",
        "direct",
        "doomed_by",
        "expires_at",
        "goodbye",
        "idle_since",
        "is_readable",
        "opened_at",
        "server",
    )

    def __init__(self) -> None:
        self.opened_at: float = monotonic()
        self.idle_since: float = self.opened_at
        self.expires_at: float = float("inf")
        self.backend_pid: int = 0
        self.closed_for: Reason | None = None
        """Why the pool closes it, once that is decided."""
        self.doomed_by: str | None = None
        self.is_readable: Callable[[], object] | None = None
        """Tells whether the socket has something to read; made at the first look."""
        self.goodbye: str | None = None
        """SQLSTATE with which the server ended the session, where it came as a notice."""
        self.server: KnownServer | None = None
        """What its server answers, once retry_transaction has asked for it."""
        self.direct: bool = False
        """Whether the server's process is the one that logged the connection in: no pooler's."""
        self.backend: Backend | None = None
        """What works for a direct connection, once retry_transaction has asked for it."""

    def doom(self, reason: str) -> None:
        """Have the connection closed instead of kept when it comes back."""
        if self.doomed_by is None:
            self.doomed_by = one_line(masked(reason))

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


class Owner(Protocol):
    """Who uses a connection that is checked out."""

    def keeps(self, connection: PooledConnection) -> bool:
        """Tell whether it goes on using it, though the thread of the checkout has ended."""


class PooledConnection(psycopg.Connection[Any]):
    """A connection opened by a pool."""

    life: Life

    owner: ref[Owner] | None = None
    """Who has it, while it is in use."""

    pinned_by: str | None = None
    """What made it stay, in transaction mode, beyond its transaction; cleared when it is reset."""

    rider: Rider | None = None
    """What rides with the statements of an attempt under retry_transaction."""

    @classmethod
    def connect(cls, *args: Any, **kwargs: Any) -> Self:
        """As psycopg's, and a connection of this class even after psycopg's was patched.

        opentelemetry-instrumentation-psycopg leaves psycopg.Connection, when it is taken away
        again, with a connect() that makes instances of that class only.
        """
        connect: Any = super().connect
        if getattr(connect, "__self__", cls) is not cls:
            connect = partial(connect.__func__, cls)
        try:
            made: Self = connect(*args, **kwargs)
        except psycopg.Error as error:
            # libpq quotes what it does not understand, a connection string for one.
            scrub(error)
            raise
        return made

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.life = Life()
        # Asked for now, since a closed connection does not tell.
        self.life.backend_pid = self.pgconn.backend_pid
        self.add_notice_handler(self.life.notice)

    @property
    def place(self) -> tuple[str, int]:
        """Host and port of the server, which of several hosts it is."""
        return self.info.hostaddr or self.info.host, self.info.port

    @property
    def server_is_read_only(self) -> bool:
        """Whether the server last said that sessions there cannot write.

        It reports both settings, and each change of them, by itself:
        https://www.postgresql.org/docs/current/libpq-status.html#LIBPQ-PQPARAMETERSTATUS
        """
        status = self.info.parameter_status
        return "on" in (status("in_hot_standby"), status("default_transaction_read_only"))
