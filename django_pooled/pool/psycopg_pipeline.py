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
from psycopg import pq

from django_pooled.diagnostics.required_names import Need, needed_of, require
from django_pooled.lazy_pattern import lazy_pattern

from .psycopg_private import name_of

with needed_of("psycopg"):
    from psycopg import generators
    from psycopg.client_cursor import ClientCursorMixin

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
_CARRIED = lazy_pattern(
    rb"[\s(]*(?:select|insert|update|delete|merge|with|values|table"
    rb"|set|lock|truncate|create|alter|drop)\b",
    re.IGNORECASE,
)
_QUOTED = lazy_pattern(rb"""'[^']*'|"[^"]*\"""")
_SPECIAL = lazy_pattern(rb"""[;$'"]""")


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

    def take_due(self) -> Sequence[bytes]:
        """Return the commands that the server has to run before any other statement.

        They wait no longer: the caller sends them now.
        """
        status = self.pgconn.transaction_status
        begins = status == _IDLE and not self._autocommit
        if not begins and status != _INTRANS:
            return ()
        waiting: Sequence[bytes] = ()
        if self.control is not None:
            waiting = self.control.waiting
            self.control.sent()
        if not begins:
            return waiting
        if self.beginning is None:
            return [self._get_tx_start_command(), *waiting]
        return [*map(str.encode, self.beginning.statements), *waiting]

    def send_due(self) -> PQGen[None]:
        """Send what is due, in a message of its own.

        Raises:
            psycopg.Error: The server's, or the connection's.
        """
        yield from self._send(self.take_due())

    def _send(self, commands: Sequence[bytes]) -> PQGen[None]:
        if not commands:
            return
        self._check_connection_ok()
        self.pgconn.send_query(b"; ".join(commands))
        results = yield from generators.execute(self.pgconn)
        for result in results:
            if result.status == _FATAL_ERROR:
                raise psycopg.errors.error_from_result(result, encoding=self.info.encoding)
        yield from self._began(results)

    def _began(self, results: Sequence[PGresult]) -> PQGen[None]:
        """Correct the time limits of a transaction that has begun, if that is needed."""
        beginning, self.beginning = self.beginning, None
        if beginning is not None and (correction := beginning.corrections(results)):
            yield from self._send([correction.encode()])


class CarryingCursor(_AnyCursor):
    """psycopg's cursor, whose ``execute()`` takes along what is due on its connection."""

    addition: Sequence[str] = ()
    """Statements to be sent along after that of ``execute()``."""

    answers: Sequence[PGresult] = ()
    """Their results, which do not concern the caller of the statement."""

    def take_along(self) -> None:
        """Have the next ``execute()`` take along what is due, and the addition.

        Without any it goes psycopg's own way. If another thread changes what is due before this one
        has the lock, either way is right, and one costs a round trip more.
        """
        connection = self._conn
        if (
            isinstance(connection, CarryingConnection)
            and (self.addition or (connection.carries and connection.has_due))
            and connection._pipeline is None
        ):
            self._execute_gen = self._carrying_gen  # type: ignore[method-assign]
        else:
            # That of an execute() which an exception ended before it came to this.
            vars(self).pop("_execute_gen", None)

    def _carrying_gen(
        self,
        query: Query,
        params: Params | None = None,
        *,
        prepare: bool | None = None,
        binary: bool | None = None,
    ) -> PQGen[None]:
        """As psycopg's ``_execute_gen``, which begins the transaction before the statement."""
        del self._execute_gen
        connection: Any = self._conn
        # It would send BEGIN, which the statement takes along; a tuple() waits for nothing.
        connection._start_query = tuple
        try:
            yield from self._start_query(query)
        finally:
            del connection._start_query
        try:
            pgq = self._convert_query(query, params)
        except Exception:
            # psycopg has begun the transaction before it looks at the parameters.
            yield from connection.send_due()
            raise
        commands = connection.take_due()
        if commands and self._can_follow(connection, pgq):
            refusal = self._send_together(connection, commands, pgq, binary)
            results = yield from _results_of_message(connection.pgconn)
            self._check_results(results)
            if refusal is not None:
                raise refusal
            begun, results = results[: len(commands)], results[len(commands) :]
            own = len(results) - len(self.addition)
            self.answers = results[own:]
            self._set_results(results[:own])
            if connection.beginning is not None:
                yield from connection._began(begun)
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

    def _send_together(
        self,
        connection: CarryingConnection,
        commands: Sequence[bytes],
        pgq: PostgresQuery,
        binary: bool | None,
    ) -> Exception | None:
        """Send what is due, the statement and the addition; return why the statement was not.

        The answer to the message has to be read before that is raised, and before anything is.
        """
        connection._check_connection_ok()
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
        return refusal


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
