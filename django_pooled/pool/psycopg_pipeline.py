"""A statement and the transaction control before it, in one message of libpq's pipeline mode.

What is private of psycopg and needed for it; the rest is in psycopg_private.py. In psycopg a cursor
first begins the transaction, in a round trip, and then sends its statement: here it takes BEGIN
along. Pipeline mode has the server parse and run each command by itself, so an error of the
statement leaves the transaction as if the commands had come one by one.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import generators, pq
from psycopg.client_cursor import ClientCursorMixin

from django_pooled.diagnostics.required_names import Need, require

from .psycopg_private import name_of

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from psycopg._queries import PostgresQuery
    from psycopg.abc import Params, PQGen, Query
    from psycopg.pq.abc import PGconn, PGresult

    from .beginning import Beginning
    from .transaction_control import TransactionControl

    # The class that the mixin below is for.
    _AnyCursor = psycopg.Cursor[Any]
else:
    _AnyCursor = object

__all__ = [
    "IS_SUPPORTED",
    "CarryingConnection",
    "CarryingCursor",
    "ends_transaction",
    "is_one_statement",
    "seem_executed",
    "sends_due",
    "takes_along",
]

IS_SUPPORTED: bool = psycopg.Pipeline.is_supported()
"""Whether libpq has pipeline mode: since its version 14."""

_IDLE, _INTRANS = pq.TransactionStatus.IDLE, pq.TransactionStatus.INTRANS
_FATAL_ERROR, _PIPELINE_SYNC = pq.ExecStatus.FATAL_ERROR, pq.ExecStatus.PIPELINE_SYNC

require(
    "psycopg",
    (
        Need(
            psycopg.Connection,
            "_check_connection_ok _get_tx_start_command _start_query",
            "send BEGIN with a statement",
        ),
        Need(
            psycopg.Cursor,
            "_execute_gen _start_query _maybe_prepare_gen _execute_send _check_results"
            " _set_results",
            "send BEGIN with a statement",
        ),
        Need(psycopg.Cursor, "_results", "take the answer to a question of ours away"),
        Need(psycopg.Cursor, "_reset _convert_query", "have SAVEPOINT wait for a statement"),
        Need(generators, "execute fetch_many send", "send several commands in one message"),
    ),
)

# Beside those that may be more than one statement, COPY is left out, which libpq has no way out of
# in pipeline mode.
_CARRIED = re.compile(
    rb"[\s(]*(?:select|insert|update|delete|merge|with|values|table"
    rb"|set|lock|truncate|create|alter|drop)\b",
    re.IGNORECASE,
)
_QUOTED = re.compile(rb"""'[^']*'|"[^"]*\"""")
_SPECIAL = re.compile(rb"""[;$'"]""")


def is_one_statement(query: bytes, *, has_parameters: bool) -> bool:
    """Tell whether *query* is certainly one statement, and not of a kind that must go alone.

    The extended protocol takes no more than one, and reads ``$1`` as a parameter.
    """
    if not _CARRIED.match(query):
        return False
    if has_parameters or (b";" not in query and b"$" not in query):
        return True
    if b"\\" in query or b"--" in query or b"/*" in query:
        # Where a literal ends could not be told that easily.
        return False
    return not _SPECIAL.search(_QUOTED.sub(b"", query).rstrip(b"; \t\r\n"))


_ENDS = frozenset({"BaseConnection._commit_gen", "BaseConnection._rollback_gen"})


def ends_transaction(generator: Generator[Any, Any, Any]) -> bool:
    """Tell whether psycopg ends the transaction, and all savepoints with it, by *generator*."""
    return name_of(generator) in _ENDS


def sends_due(generator: Generator[Any, Any, Any]) -> bool:
    """Tell whether *generator* sends what is due, with a statement or without one."""
    return takes_along(generator) or name_of(generator) == "CarryingConnection.send_due"


def takes_along(generator: Generator[Any, Any, Any]) -> bool:
    """Tell whether *generator* sends what is due before its statement."""
    return name_of(generator) == "CarryingCursor._carrying_gen"


class CarryingConnection(psycopg.Connection[Any]):
    """psycopg's connection, which can leave transaction control to a cursor's next statement."""

    carries: bool = False
    """Whether statements take along what the transaction needs before them."""

    control: TransactionControl | None = None
    """What waits for the next statement."""

    beginning: Beginning | None = None
    """In place of BEGIN alone, for the exchange under way."""

    @property
    def has_due(self) -> bool:
        """Whether the server has to run anything before the next statement."""
        control = self.control
        if control is None and self._autocommit:
            return False
        status = self.pgconn.transaction_status
        if status == _INTRANS:
            return control is not None and control.is_waiting
        return status == _IDLE and not self._autocommit

    def set_autocommit(self, value: bool) -> None:
        """As psycopg's, which waits as for an answer of the server, though there is none."""
        with self.lock:
            is_idle = self.pgconn.transaction_status == _IDLE and self._pipeline is None
            if is_idle and (self.control is None or not self.control.is_waiting):
                self._autocommit = bool(value)
                return
        super().set_autocommit(value)

    def due(self) -> Sequence[bytes]:
        """Return the commands that the server has to run before any other statement."""
        status = self.pgconn.transaction_status
        waiting = () if self.control is None else self.control.waiting
        if status == _INTRANS:
            return waiting
        if status != _IDLE or self._autocommit:
            return ()
        if self.beginning is None:
            return [self._get_tx_start_command(), *waiting]
        return [*map(str.encode, self.beginning.statements), *waiting]

    def send_due(self) -> PQGen[None]:
        """Send what is due, in a message of its own.

        Raises:
            psycopg.Error: The server's, or the connection's.
        """
        yield from self._send(self.due())

    def _send(self, commands: Sequence[bytes]) -> PQGen[None]:
        if not commands:
            return
        self._sending()
        self.pgconn.send_query(b"; ".join(commands))
        results = yield from generators.execute(self.pgconn)
        self._raise_error_in(results)
        yield from self._began(results)

    def _began(self, results: Sequence[PGresult]) -> PQGen[None]:
        """Correct the time limits of a transaction that has begun, if that is needed."""
        beginning, self.beginning = self.beginning, None
        if beginning is not None and (correction := beginning.corrections(results)):
            yield from self._send([correction.encode()])

    def _sending(self) -> None:
        """What was due is sent now."""
        if self.control is not None:
            self.control.sent()
        self._check_connection_ok()

    def _raise_error_in(self, results: Sequence[PGresult]) -> None:
        for result in results:
            if result.status == _FATAL_ERROR:
                raise psycopg.errors.error_from_result(result, encoding=self.info.encoding)


def _nothing() -> PQGen[None]:
    """In place of psycopg's BEGIN, which the statement takes along."""
    yield from ()


class CarryingCursor(_AnyCursor):
    """psycopg's cursor, whose ``execute()`` takes along what is due on its connection."""

    addition: Sequence[str] = ()
    """Statements to be sent along after that of ``execute()``."""

    answers: Sequence[PGresult] = ()
    """Their results, which do not concern the caller of the statement."""

    def take_along(self) -> None:
        """Have the next ``execute()`` take along what is due, and the addition.

        Most statements have nothing to take along, and go psycopg's own way.
        """
        self._execute_gen = self._taking_along_gen  # type: ignore[method-assign]

    def _taking_along_gen(self, *args: Any, **options: Any) -> PQGen[None]:
        del self._execute_gen
        connection = self._conn
        # Called with the lock held.
        if (
            isinstance(connection, CarryingConnection)
            and (self.addition or (connection.carries and connection.has_due))
            and connection._pipeline is None
        ):
            return self._carrying_gen(connection, *args, **options)
        return super()._execute_gen(*args, **options)

    def _carrying_gen(
        self,
        connection: CarryingConnection,
        query: Query,
        params: Params | None = None,
        *,
        prepare: bool | None = None,
        binary: bool | None = None,
    ) -> PQGen[None]:
        """As psycopg's ``_execute_gen``, which begins the transaction before the statement."""
        commands = connection.due()
        connection._start_query = _nothing  # type: ignore[method-assign]
        try:
            yield from self._start_query(query)
        finally:
            del connection._start_query
        try:
            pgq = self._convert_query(query, params)
        except Exception:
            # psycopg has begun the transaction before it looks at the parameters.
            yield from connection._send(commands)
            raise
        if commands and self._can_follow(connection, pgq):
            yield from self._pipelined_gen(connection, commands, pgq, binary)
        else:
            yield from connection._send(commands)
            if not self.addition:
                yield from self._maybe_prepare_gen(pgq, prepare=prepare, binary=binary)
            else:
                yield from self._with_addition_gen(pgq, prepare, binary)
        self._last_query = query
        yield from connection._prepared.maintain_gen(connection)

    def _can_follow(self, connection: CarryingConnection, pgq: PostgresQuery) -> bool:
        """Tell whether a statement can be sent in one message with what is due before it."""
        beginning = connection.beginning
        # psycopg.ClientCursor has put the parameters into the text.
        binds = bool(pgq.params) and not isinstance(self, ClientCursorMixin)
        return (
            connection.carries
            and (beginning is None or beginning.is_foreseen)
            and connection.prepare_threshold is None
            and is_one_statement(pgq.query, has_parameters=binds)
        )

    def _with_addition_gen(
        self, pgq: PostgresQuery, prepare: bool | None, binary: bool | None
    ) -> PQGen[None]:
        # On a line of its own, since the statement may end in a comment.
        query, pgq.query = pgq.query, b"\n;".join((pgq.query, *map(str.encode, self.addition)))
        try:
            yield from self._maybe_prepare_gen(pgq, prepare=prepare, binary=binary)
        finally:
            # Django logs a statement as the cursor has it.
            pgq.query = query
        own = len(self._results) - len(self.addition)
        self.answers = self._results[own:]
        del self._results[own:]

    def _pipelined_gen(
        self,
        connection: CarryingConnection,
        commands: Sequence[bytes],
        pgq: PostgresQuery,
        binary: bool | None,
    ) -> PQGen[None]:
        connection._sending()
        pgconn = connection.pgconn
        pgconn.enter_pipeline_mode()
        refusal = None
        for command in commands:
            pgconn.send_query_params(command, None)
        try:
            self._execute_send(pgq, force_extended=True, binary=binary)
        except Exception as error:
            # A format that the cursor does not have, for instance.
            refusal = error
        else:
            for statement in self.addition:
                pgconn.send_query_params(statement.encode(), None)
        pgconn.pipeline_sync()
        # Nothing may be raised before the end of the message was read.
        results = yield from _results_of_message(pgconn)
        begun, results = results[: len(commands)], results[len(commands) :]
        connection._raise_error_in(begun)
        if refusal is not None:
            raise refusal
        self._check_results(results)
        own = len(results) - len(self.addition)
        self.answers = results[own:]
        self._set_results(results[:own])
        if connection.beginning is not None:
            yield from connection._began(begun)


def _results_of_message(pgconn: PGconn) -> PQGen[list[PGresult]]:
    """Read the results of what was sent, one for each command, and leave pipeline mode.

    Raises:
        psycopg.Error: The connection was lost, and the server has not said why.
    """
    results: list[PGresult] = []
    try:
        if pgconn.flush():
            yield from generators.send(pgconn)
        while found := (yield from generators.fetch_many(pgconn)):
            status = found[0].status
            if status == _PIPELINE_SYNC:
                pgconn.exit_pipeline_mode()
                return results
            results += found
            if status == _FATAL_ERROR and pgconn.status != pq.ConnStatus.OK:
                break
    except psycopg.Error:
        if not any(result.status == _FATAL_ERROR for result in results):
            raise
    # The session has ended, with these last words.
    pgconn.finish()
    return results


def seem_executed(cursor: psycopg.Cursor[Any], query: str, tag: bytes) -> None:
    """Have *cursor* look as after *query*, which has no rows and was not sent.

    Args:
        cursor: Of any class.
        query: One statement without parameters.
        tag: What the server answers to it.
    """
    cursor._reset()
    cursor._tx = psycopg.adapt.Transformer(cursor)
    cursor._query = cursor._convert_query(query)
    cursor._set_results([cursor._pgconn.make_empty_result(pq.ExecStatus.COMMAND_OK)])
    # Before psycopg 3.3 the message is the result's, and libpq makes none: it is None there.
    cursor._statusmessage = tag
    cursor._last_query = None
