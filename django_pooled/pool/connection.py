"""The psycopg connection of a pool: one object for each checkout of a session."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from functools import partial
from threading import get_ident
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import psycopg
from psycopg.pq import ConnStatus, TransactionStatus
from psycopg.rows import tuple_row

from django_pooled.diagnostics.redaction import scrub
from django_pooled.sql.effects import effect_of, sets_a_time_limit
from django_pooled.sql.session_state import ends_with_session, graver, hides_what_it_does

from . import psycopg_pipeline, psycopg_private
from .beginning import begin, beginning_of
from .deadline import current
from .references import ALONE
from .session import Session
from .socket_check import reads_on
from .statement_deadline import refuse_if_ended, tell_if_interrupted, wait_within

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from weakref import ref

    from psycopg.abc import PQGen
    from psycopg.pq.abc import PGconn, PGresult
    from psycopg.rows import RowFactory
    from typing_extensions import Self

    from django_pooled.sql.effects import Effect

    from .deadline import Deadline
    from .psycopg_pipeline import CarryingCursor
    from .psycopg_private import AsMade
    from .transaction_control import TransactionControl

__all__ = ["UNKNOWN", "Observer", "Owner", "PooledConnection", "Unknown", "Use"]


class Unknown:
    """A statement whose text is not known."""

    def __repr__(self) -> str:
        return "UNKNOWN"


UNKNOWN = Unknown()
"""In place of a statement that psycopg itself sends, past the cursors of this package."""

# Stands for the statements of psycopg's transaction() at the ends of its block.
_SAVEPOINTS = "ROLLBACK TO SAVEPOINT x"


class Owner(Protocol):
    """The user of a connection that is checked out."""

    def keeps(self, connection: PooledConnection) -> bool:
        """Tell whether it still uses it, though the thread of the checkout has ended."""

    @property
    def is_setting_up(self) -> bool:
        """Whether it is sending the statements that it sends on each connection it gets."""

    def pin(self, connection: PooledConnection, state: str) -> None:
        """A statement on *connection* gives its session *state*, or may do so."""

    def note_write(self, connection: PooledConnection) -> None:
        """A statement on *connection* changes something, or may do so."""

    def replace(self, connection: PooledConnection) -> PooledConnection:
        """Return another one in place of *connection*, if that was lost and nothing needs it."""


class Use(Protocol):
    """The checkout that a connection is in use by, or was last."""

    key: object
    """Tells it from every other checkout."""

    connection: ref[PooledConnection]
    """The present object of the session."""

    activity: str | None
    """The view, task or command that it is for, if that is known."""

    def name_again(self) -> None:
        """Find out what it is for, which was not known as it began."""

    def take_back(self, connection: PooledConnection) -> bool:
        """Bring back a connection that nobody can use any more; tell whether it was in use."""


class Observer(Protocol):
    """Sees each statement on a connection, before it is sent and after it was run."""

    def see(self, query: object, effect: Effect, *, carries: bool, locked: bool) -> Sequence[str]:
        """Take note of *query*, and return the statements that should be sent along after it.

        Args:
            query: As a cursor got it, or `UNKNOWN`.
            effect: What its text shows.
            carries: Whether something can be sent along.
            locked: Whether psycopg's lock of the connection is held.

        Raises:
            Exception: It must not be sent.
        """

    def seen(self, cursor: CarryingCursor | None, addition: Sequence[str], *, locked: bool) -> None:
        """The statement has been run.

        Args:
            cursor: What ran it; None for psycopg itself.
            addition: What was sent along with it.
            locked: Whether psycopg's lock of the connection is held.

        Raises:
            Exception: It should not have been.
        """


class _WaitingInfo(psycopg.ConnectionInfo):
    """Of a connection with savepoints that wait for BEGIN, which waits for a statement."""

    @property
    def transaction_status(self) -> TransactionStatus:
        status = super().transaction_status
        return TransactionStatus.INTRANS if status == TransactionStatus.IDLE else status


RV = TypeVar("RV")


def _gone() -> psycopg.InterfaceError:
    return psycopg.InterfaceError("the connection went back to its pool")


class PooledConnection(psycopg_pipeline.CarryingConnection):
    """A connection opened by a pool.

    No object serves a checkout that was changed by an earlier one, or that anything still refers
    to: when it comes back, `renewed` makes another for its session, and it is closed for good. So
    cursors, generators and blocks that are kept beyond a request cannot reach the transaction of
    another one, and everything that was set on the object (adapters, row factory, handlers) goes
    with it. A ``pgconn`` that was taken from it before is out of reach.
    """

    # Whatever else is an attribute is psycopg's or the user's: see `as_made`. No lock guards these:
    # they are the user's, or the pool's while there is none; with `claim` it changes hands. Others
    # read `session`, `statement`, `pinned_by` and `uses`, each of which changes in one operation.
    __slots__ = (
        "_given_back",
        "_pool",
        "announced_by",
        "as_made",
        "beginning",
        "carries",
        "control",
        "drew",
        "fresh_until",
        "in_use",
        "may_have_begun",
        "observer",
        "owner",
        "pinned_by",
        "relied_on",
        "replaced_by",
        "session",
        "statement",
        "statements",
        "time_limits",
        "uses",
        "wrote",
    )

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
            # libpq quotes text that it does not understand, such as a connection string.
            scrub(error)
            raise
        return made

    @classmethod
    def adopt(cls, connection: object, parameters: Mapping[str, Any]) -> Self:
        """Take over the session of a connection of psycopg's own, which is of no use afterwards.

        Args:
            connection: Open, and in no transaction.
            parameters: psycopg's, of which the object gets those that are not the session's.

        Raises:
            TypeError: It is no such connection.
        """
        if isinstance(connection, cls):
            return connection
        if not isinstance(connection, psycopg.Connection):
            raise TypeError(
                f"returned {type(connection).__name__}; expected an open psycopg.Connection"
            )
        if connection.closed or connection.info.transaction_status != TransactionStatus.IDLE:
            status = connection.info.transaction_status.name
            connection.close()
            raise TypeError(f"returned a connection in status {status}; expected IDLE")
        made = cls(connection.pgconn)
        psycopg_private.take_over(connection, made, parameters)
        return made

    def __init__(
        self,
        pgconn: PGconn,
        row_factory: RowFactory[Any] = tuple_row,
        *,
        session: Session | None = None,
    ) -> None:
        super().__init__(pgconn, row_factory)
        if session is None:
            session = Session(pgconn)
            self.add_notice_handler(session.notice)
        self.session: Session = session
        # As in the class above.
        self.carries, self.control, self.beginning = False, None, None
        self.as_made: AsMade | None = None
        """How this object was when the pool made it for a session that came back."""
        self.uses: list[Use] = []
        """Its checkout, until that is claimed by `claim`; empty while it is idle."""
        self.in_use: bool = False
        """Whether it is checked out, by a wrapper or by code that asks the pool itself."""
        self.fresh_until: float = 0.0
        """The monotonic moment before which its socket need not be looked at again."""
        self.owner: ref[Owner] | None = None
        """Its user, while it is in use."""
        self.observer: Observer | None = None
        """Sees the statements of an attempt under retry_transaction."""
        self.announced_by: int = 0
        """The thread whose next calls were announced; psycopg lets several use a connection."""
        self.statement: object = None
        """What a cursor has under way, as it was given it; for others to see."""
        self.statements: int = 0
        """In transaction mode, how many statements of cursors need it."""
        self.wrote: bool = False
        """Whether anything was sent, since the checkout, that does more than read."""
        self.may_have_begun: bool = False
        """Whether a statement in autocommit, since the checkout, may have begun a transaction."""
        self.time_limits: Mapping[str, float] | None = None
        """Seconds of the limits that the next transaction gets, by the names of their settings."""
        self.replaced_by: PooledConnection | None = None
        """The connection that has taken its place, and its statements, after it was lost."""
        self.drew: bool = False
        """Whether any of it may have drawn a value from a sequence."""
        self.pinned_by: str | None = None
        """Session state that a statement has left, or may have left; cleared at the checkin."""
        self.relied_on: str | None = None
        """The same, without time limits: only waits depend on those."""
        self._given_back = False

    def remember_configuration(self) -> None:
        """Have every later object of this session begin as this one is now."""
        self.session.configuration = psycopg_private.configuration_of(self)

    def stop_preparing(self) -> None:
        """Have psycopg prepare no statement in this session any more, nor use those it has."""
        self.prepare_threshold = None
        if self.session.configuration is not None:
            self.session.configuration = self.session.configuration._replace(prepare_threshold=None)

    def renewed(self) -> Self:
        """Return another object for the same session, as new; this one is closed for good."""
        made = self.session.configuration
        if made is None:
            made = self.session.configuration = psycopg_private.configuration_of(self)
        self.session.was_written |= self.wrote
        new = type(self)(self.pgconn, session=self.session)
        new.pinned_by = self.pinned_by
        self._given_back = True
        psycopg_private.succeed(self, new, made)
        if ALONE:
            # Else it serves one checkout, since nothing tells whether it is referred to.
            new.as_made = psycopg_private.as_made(new)
        return new

    def announce(
        self,
        query: object,
        effect: Effect | None = None,
        *,
        carries: bool = False,
        locked: bool = False,
    ) -> Sequence[str]:
        """A statement is about to be run; return those to be sent along after it.

        Args:
            query: As a cursor got it, or `UNKNOWN`.
            effect: What its text shows, where the caller has asked for that already.
            carries: Whether something can be sent along.
            locked: Whether psycopg's lock of the connection is held.

        Raises:
            psycopg.InterfaceError: The connection went back to its pool.
            Exception: The observer's, if the statement must not be sent.
        """
        if self._given_back:
            raise _gone()
        if self.announced_by == get_ident() or (self.owner is None and not self.in_use):
            return ()
        if effect is None:
            effect = effect_of(query)
        if self.control is not None and (effect.controls or effect.ends is not False):
            self.control.forget(query)
        if effect.leaves is not None:
            # Also where the session is not cleared: its caller relies on what it has set.
            self._note_state(query, effect.leaves, locked)
        if not effect.reads:
            self.wrote = True
            self.drew = self.drew or effect.draws
            if not effect.writes and self.autocommit:
                self.may_have_begun = True
            owner = None if self.owner is None or effect.controls else self.owner()
            if owner is not None and not (effect.leaves and ends_with_session(effect.leaves)):
                owner.note_write(self)
        if self.observer is None:
            return ()
        return self.observer.see(query, effect, carries=carries, locked=locked)

    def _note_state(self, query: object, state: str, locked: bool) -> None:
        # It may set other ones, and the next transaction must not rely on those.
        self.session.time_limits.clear()
        if self.session.clears_state and self.session.was_written and not self.drew:
            self._forget_sequences(state, locked)
        owner = None if self.owner is None else self.owner()
        if owner is not None:
            owner.pin(self, state)
        else:
            # In use beyond its owner, until that is noticed and it goes back.
            self.pinned_by = graver(self.pinned_by, state)
        is_set_up_again = owner is not None and owner.is_setting_up
        if not is_set_up_again and not sets_a_time_limit(query):
            self.relied_on = self.pinned_by

    def _forget_sequences(self, state: str, locked: bool) -> None:
        """Have lastval() fail, as in a new session, where another checkout has drawn a value."""
        asks = state == "SEQUENCE" or hides_what_it_does(state)
        can_answer = self.pgconn.transaction_status in (
            TransactionStatus.IDLE,
            TransactionStatus.INTRANS,
        )
        if state == "SEQUENCE" and psycopg_private.is_piping(self):
            raise psycopg.NotSupportedError(
                "lastval() and currval() within a pipeline may tell what another request has "
                "drawn; ask before it, or after a nextval() of the same request"
            )
        if asks and can_answer and not psycopg_private.is_piping(self):
            self.ask("DISCARD SEQUENCES", locked=locked)
            self.session.was_written = False

    def refuse_if_given_back(self) -> None:
        """Refuse to be used after the checkout has ended.

        Raises:
            psycopg.InterfaceError: The connection went back to its pool.
        """
        if self._given_back:
            raise _gone()

    @contextmanager
    def unobserved(self) -> Iterator[None]:
        """Within the block, statements are not the user's, and are not looked at."""
        thread = get_ident()
        outer = self.announced_by == thread
        self.announced_by = thread
        try:
            yield
        finally:
            if not outer:
                self.end_announced()

    @property
    def announced(self) -> bool:
        """Whether this thread's present calls were announced, or are not the user's."""
        return self.announced_by == get_ident()

    def end_announced(self) -> None:
        """This thread's next calls have not been announced."""
        if self.announced_by == get_ident():
            self.announced_by = 0

    def look(self, look: Callable[[PGconn], RV]) -> RV | None:
        """Look at libpq's connection in a thread that is not the user's; None once it is closed.

        Without the lock it might be closed, and its memory be another's, in the midst of it.

        Args:
            look: Must not wait, since who closes it waits meanwhile.
        """
        with self.session.open:
            pgconn = self.pgconn
            return look(pgconn) if pgconn.status == ConnStatus.OK else None

    def close(self) -> None:
        """As psycopg's, once no other thread looks at it."""
        with self.session.open:
            super().close()

    def commit(self) -> None:
        """As psycopg's."""
        if self.announced_by != get_ident():
            self.announce("COMMIT")
        self.session.is_committing = True
        try:
            super().commit()
        finally:
            self.session.is_committing = False

    def rollback(self) -> None:
        """As psycopg's."""
        if self.announced_by != get_ident():
            self.announce("ROLLBACK")
        super().rollback()

    def wait(self, gen: PQGen[RV], *args: Any, **kwargs: Any) -> RV:
        """As psycopg's; every exchange with the server goes through it.

        A statement that no cursor of ours has announced comes from psycopg's own classes, and may
        be anything.
        """
        if self._given_back:
            raise _gone()
        if self.control is not None and self.control.is_waiting:
            self._send_waiting(self.control, gen)
        if self.announced_by == get_ident() or psycopg_private.is_silent(gen):
            if current.get() is None and self.time_limits is None:
                try:
                    return super().wait(gen, *args, **kwargs)
                except psycopg.OperationalError as error:
                    self._note_failure(error)
                    raise
            return self._wait_within_limits(gen, *args, **kwargs)
        savepoints = psycopg_private.name_of(gen) in psycopg_private.SAVEPOINTS
        self.announce(_SAVEPOINTS if savepoints else UNKNOWN, locked=True)
        if savepoints and self.observer is not None:
            # Else psycopg takes the block for the whole transaction, and commits at its end.
            psycopg_private.begin(self, partial(self._exchange, None))
        result = self._wait_within_limits(gen, *args, **kwargs)
        if self.observer is not None:
            self.observer.seen(None, (), locked=True)
        return result

    def _wait_within_limits(self, gen: PQGen[RV], *args: Any, **kwargs: Any) -> RV:
        """Wait for *gen*, within the present deadline, and begin its transaction with limits."""
        deadline = self._deadline
        if (deadline or self.time_limits) and psycopg_private.begins_a_transaction(self, gen):
            if deadline is not None:
                refuse_if_ended(self.session, deadline)
            beginning = beginning_of(self, self.session, self.time_limits or {}, deadline)
            if not psycopg_pipeline.sends_due(gen):
                begin(self, beginning, partial(self._exchange, deadline))
            else:
                self.beginning = beginning
        try:
            return self._exchange(deadline, gen, *args, **kwargs)
        finally:
            self.beginning = None

    @property
    def _deadline(self) -> Deadline | None:
        """The present deadline, where a user waits; what the pool does has limits of its own."""
        return current.get() if self.in_use or self.owner is not None else None

    def _exchange(self, deadline: Deadline | None, gen: PQGen[RV], *args: Any, **kwargs: Any) -> RV:
        try:
            if deadline is None:
                return super().wait(gen, *args, **kwargs)
            return wait_within(self, self.session, deadline, gen, super().wait, *args, **kwargs)
        except psycopg.OperationalError as error:
            self._note_failure(error)
            raise

    def _note_failure(self, error: psycopg.OperationalError) -> None:
        """An exchange has failed: tell why the statement was cancelled, or see that all is lost."""
        if isinstance(error, psycopg.errors.QueryCanceled):
            tell_if_interrupted(self.session, error)
        elif error.sqlstate is None and self.pgconn.status == ConnStatus.OK:
            # While a reset is taken in, poll() may report the socket's error before there is
            # anything to read. psycopg raises an error by itself then, unknown to libpq.
            reads_on(self.pgconn, self.session.is_readable)

    def has_to_wait(self, cursor: psycopg.Cursor[Any], query: object) -> bool:
        """Tell whether a statement of a cursor waits for the next one, and is done for now.

        Only what Django is about to do for an ``atomic`` block does: see `TransactionControl`.
        """
        control = self.control
        if control is None or control.expected is None or psycopg_private.is_piping(self):
            return False
        self.refuse_if_given_back()
        status = self.pgconn.transaction_status
        if status == TransactionStatus.IDLE and self.autocommit:
            # Set by hand: no transaction will begin, and the server has to refuse it.
            return False
        answer = control.waits(query, status)
        if answer is not None:
            psycopg_pipeline.seem_executed(cursor, str(query), answer.encode())
        return answer is not None

    def end_savepoints(self) -> None:
        """The transaction ends, and its savepoints with it, unless psycopg refuses that."""
        if self.control is not None and not psycopg_private.is_in_block(self):
            self.control.ended()

    def _send_waiting(self, control: TransactionControl, gen: PQGen[Any]) -> None:
        """Send what waits for a statement, unless *gen* does, or makes it needless."""
        if psycopg_pipeline.ends_transaction(gen):
            self.end_savepoints()
        elif not psycopg_pipeline.takes_along(gen):
            self._wait_within_limits(self.send_due())

    @property
    def info(self) -> psycopg.ConnectionInfo:
        """As psycopg's, for which a savepoint that waits is set."""
        if self.control is not None and self.control.is_waiting:
            return _WaitingInfo(self.pgconn)
        return super().info

    @contextmanager
    def pipeline(self) -> Iterator[psycopg.Pipeline]:
        """As psycopg's; the observer asks before and after it, since it cannot within."""
        observer = None if self.announced or psycopg_private.is_piping(self) else self.observer
        if observer is not None:
            observer.see(UNKNOWN, effect_of(UNKNOWN), carries=False, locked=False)
        with super().pipeline() as pipeline:
            yield pipeline
        if observer is not None and self.observer is observer:
            observer.seen(None, (), locked=False)

    def ask(self, question: str, *, locked: bool = False) -> list[PGresult]:
        """Run statements of ours between those of the user, without being observed.

        Args:
            question: One or more statements without parameters.
            locked: Whether psycopg's lock of the connection is held.

        Raises:
            psycopg.Error: The server's answer, or the loss of the connection.
        """
        with nullcontext() if locked else self.lock:
            if self.control is not None and self.control.is_waiting:
                self._wait_within_limits(self.send_due())
            return psycopg_private.run(self, partial(self._exchange, self._deadline), question)

    def __del__(self) -> None:  # type: ignore[override]
        # psycopg_pool's mark of a connection that is not idle. No code refers to it any more, so
        # none can use it or give it back.
        pool = None if getattr(self, "_given_back", True) else getattr(self, "_pool", None)
        if pool is not None:
            pool.found(self)
        elif getattr(self, "session", None) is None or self.session.slot is None:
            super().__del__()
        # Else an exception in the thread has parted it from its pool, between two steps. It is
        # closed as it is freed; a warning that it was left open could help nobody.

    def claim(self) -> Use | None:
        """Return the checkout to its first caller, which gives the connection back; else None.

        Its user, its finalizer, and the finder of an ended thread's connections may call at the
        same moment.
        """
        try:
            # One operation, which no other thread divides.
            return self.uses.pop()
        except IndexError:
            return None

    @property
    def place(self) -> tuple[str, int]:
        """Host and port of the server that it is connected to."""
        return self.info.hostaddr or self.info.host, self.info.port

    @property
    def server_is_read_only(self) -> bool:
        """Whether the server last said that sessions there cannot write.

        It reports both settings, and each change of them, by itself:
        https://www.postgresql.org/docs/current/libpq-status.html#LIBPQ-PQPARAMETERSTATUS
        """
        status = self.info.parameter_status
        return "on" in (status("in_hot_standby"), status("default_transaction_read_only"))

    @property
    def server_is_standby(self) -> bool:
        """Whether the server last said that it is a standby."""
        return self.info.parameter_status("in_hot_standby") == "on"

    @property
    def server_is_primary(self) -> bool:
        """Whether the server last said that it is no standby, as it does from PostgreSQL 14 on."""
        return self.info.parameter_status("in_hot_standby") == "off"
