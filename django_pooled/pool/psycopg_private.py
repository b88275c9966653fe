"""Private names of psycopg that are needed here, each with the reason.

Those of psycopg_pool are in psycopg_pool_private.py. A name that is gone is found out as this
module is loaded; when what a name stands for changes, the tests of this module fail.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import psycopg
from psycopg import conninfo, pq
from psycopg.adapt import AdaptersMap, Transformer

from django_pooled.diagnostics.required_names import Need, needed_of, require

with needed_of("psycopg"):
    from psycopg import _conninfo_utils, generators

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Mapping

    from psycopg.abc import PQGen
    from psycopg.pq.abc import PGconn, PGresult

__all__ = [
    "SAVEPOINTS",
    "SILENT",
    "AsMade",
    "Configuration",
    "as_made",
    "begin",
    "begin_command",
    "begins_a_transaction",
    "configuration_of",
    "connect_timeout_of",
    "ends_something",
    "forget_prepared",
    "is_in_block",
    "is_piping",
    "is_silent",
    "move_cursor",
    "name_of",
    "parameter_of",
    "part",
    "registered_on",
    "run",
    "send",
    "sends_nothing_new",
    "split_hosts",
    "succeed",
    "take_over",
]


def _closed_pgconn() -> PGconn:
    """Return a libpq connection that is closed, and never was open to any server."""
    # libpq looks at the parameters before it does anything: it opens no socket for wrong ones.
    pgconn = pq.PGconn.connect_start(b"closed=1")
    pgconn.finish()
    return pgconn


_CLOSED = _closed_pgconn()
_CLOSED_CONNECTION: psycopg.Connection[Any] = psycopg.Connection(_CLOSED)


# Attributes of a connection, and of its adapters, that are changed in place.
_CHANGED_IN_PLACE = frozenset(
    (
        *("_notice_handlers", "_notify_handlers", "_notifies_backlog"),
        *("_dumpers", "_dumpers_by_oid", "_loaders"),
    )
)


def _require() -> None:
    connection = _CLOSED_CONNECTION
    cursor = psycopg.Cursor(connection)
    require(
        "psycopg",
        (
            Need(connection, "_adapters _notice_handlers _notify_handlers", "keep configuration"),
            Need(connection, "_notifies_backlog", "tell what was changed on a connection"),
            Need(connection.adapters, "_dumpers _dumpers_by_oid _loaders", "tell what was changed"),
            Need(connection, "_autocommit _closed pgconn", "hand a session to a new object"),
            Need(connection, "_prepared", "know what a session has prepared"),
            Need(connection, "_pipeline", "tell a pipeline"),
            Need(connection, "_num_transactions", "tell a block of transaction()"),
            Need(connection, "_start_query lock wait", "begin a transaction"),
            Need(connection, "_get_tx_start_command", "begin a transaction with time limits"),
            Need(psycopg.Cursor, "_closed _tx", "part a closed cursor from its connection"),
            Need(cursor, "_conn _pgconn _last_query", "run a cursor on another connection"),
            Need(conninfo, "timeout_from_conninfo", "know the time limit of a connect"),
            Need(_conninfo_utils, "get_param split_attempts", "go through several hosts"),
            Need(generators, "execute", "run a command under the connection's lock"),
        ),
    )
    forget = "forget what DISCARD has removed"
    require("psycopg", (Need(connection._prepared, "clear _to_flush", forget),))


_require()


def connect_timeout_of(parameters: Mapping[str, Any]) -> float:
    """Return the seconds that psycopg waits for each host.

    Its own reading of ``connect_timeout``, PGCONNECT_TIMEOUT and its default, which has no public
    name: as in libpq, 0 is no limit (psycopg has one all the same), and 1 is 2.
    """
    given = {key: value for key, value in parameters.items() if value is not None}
    return float(conninfo.timeout_from_conninfo(given))


def parameter_of(parameters: Mapping[str, Any], name: str) -> str:
    """Return a connection parameter as psycopg finds it: given, or in the environment; else ""."""
    return _conninfo_utils.get_param(parameters, name) or ""


def split_hosts(parameters: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Split lists of hosts, addresses and ports into the parameters of each host, as psycopg does.

    Raises:
        psycopg.OperationalError: The lists do not match.
    """
    return _conninfo_utils.split_attempts(parameters)


# psycopg tells what it is about to do only by the generator that it waits for: by its qualified
# name, which those have too that are compiled, as psycopg_c's are.
SILENT = frozenset(
    {
        "BaseConnection._set_autocommit_gen",
        "BaseConnection._set_isolation_level_gen",
        "BaseConnection._set_read_only_gen",
        "BaseConnection._set_deferrable_gen",
        "BaseConnection._commit_gen",
        "BaseConnection._rollback_gen",
        "BaseCursor._stream_fetchone_gen",
        "BasePipeline._enter_gen",
        "BasePipeline._exit_gen",
        "BasePipeline._sync_gen",
        "BasePipeline._fetch_gen",
        "ServerCursorMixin._fetch_gen",
        "ServerCursorMixin._scroll_gen",
        "ServerCursorMixin._close_gen",
        "notifies",
        "copy_from",
        "copy_to",
        "copy_end",
    }
)

"""Generators that send nothing of their own accord (setters, the end of what was begun), or go on
with a statement that was seen when it began: the rows of a cursor, the data of a COPY."""

SAVEPOINTS = frozenset({"BaseTransaction._enter_gen", "BaseTransaction._exit_gen"})
"""Generators that begin or end a block of psycopg's own ``transaction()``."""

_FETCHES = frozenset({"ServerCursorMixin._fetch_gen", "ServerCursorMixin._scroll_gen"})

_ENDS = frozenset(
    {
        "BaseConnection._commit_gen",
        "BaseConnection._rollback_gen",
        "BaseConnection._tpc_finish_gen",
        "BasePipeline._exit_gen",
        "BaseTransaction._exit_gen",
        "ServerCursorMixin._close_gen",
    }
)

# Those of cursors that send BEGIN first where it is due.
_BEGINS = frozenset(
    {
        "BaseCursor._execute_gen",
        "CarryingConnection.send_due",
        "CarryingCursor._carrying_gen",
        "BaseCursor._executemany_gen_no_pipeline",
        "BaseCursor._stream_send_gen",
        "BaseCursor._start_copy_gen",
        "ServerCursorMixin._declare_gen",
    }
)


def is_silent(generator: Generator[Any, Any, Any]) -> bool:
    """Tell whether *generator* runs no statement that has not been seen."""
    return name_of(generator) in SILENT


def sends_nothing_new(generator: Generator[Any, Any, Any]) -> bool:
    """Tell whether *generator* at most goes on with a statement that has begun."""
    name = name_of(generator)
    return name in SILENT and name not in _FETCHES


def ends_something(generator: Generator[Any, Any, Any]) -> bool:
    """Tell whether *generator* ends a transaction, a block, a pipeline or a cursor."""
    return name_of(generator) in _ENDS


def begins_a_transaction(
    connection: psycopg.Connection[Any], generator: Generator[Any, Any, Any]
) -> bool:
    """Tell whether psycopg would send BEGIN before the statement of *generator*."""
    return (
        not connection._autocommit
        and connection.pgconn.transaction_status == pq.TransactionStatus.IDLE
        and connection._pipeline is None
        and name_of(generator) in _BEGINS
    )


def name_of(generator: Generator[Any, Any, Any]) -> str:
    """Return by what psycopg calls what it is about to do."""
    # Generators that are compiled, as psycopg_c's are, have it too.
    return getattr(generator, "__qualname__", "?")


class Configuration(NamedTuple):
    """What a connection object was given when its session was opened."""

    adapters: AdaptersMap
    row_factory: Any
    cursor_factory: Any
    server_cursor_factory: Any
    notice_handlers: tuple[Any, ...]
    notify_handlers: tuple[Any, ...]
    prepare_threshold: int | None
    prepared_max: int | None


def configuration_of(connection: psycopg.Connection[Any]) -> Configuration:
    """Describe *connection* as it is now, for `succeed`."""
    return Configuration(
        AdaptersMap(connection.adapters),
        connection.row_factory,
        connection.cursor_factory,
        connection.server_cursor_factory,
        tuple(connection._notice_handlers),
        tuple(connection._notify_handlers),
        connection.prepare_threshold,
        connection.prepared_max,
    )


def registered_on(connection: psycopg.Connection[Any]) -> list[object]:
    """Describe what was set on the object of *connection*, and is not in its session.

    By names, since classes that are made from a type of the database differ each time.
    """
    dumpers: Iterable[Any] = connection.adapters._dumpers.values()
    loaders: Iterable[Any] = connection.adapters._loaders
    return [
        *map(_named, (connection.row_factory, connection.cursor_factory)),
        _named(connection.server_cursor_factory),
        [_named(handler) for handler in connection._notice_handlers],
        [_named(handler) for handler in connection._notify_handlers],
        *(_named_all(kind) for kind in (*dumpers, *loaders)),
    ]


def _named_all(adapters: dict[Any, Any]) -> dict[Any, str]:
    # A copy, which is one operation: connections share these, and psycopg replaces the name of a
    # class by the class when it is first adapted.
    return {key: _named(adapter) for key, adapter in adapters.copy().items()}


def _named(what: object) -> str:
    of = what if hasattr(what, "__qualname__") else type(what)
    return f"{of.__module__}.{of.__qualname__}"


def succeed(
    old: psycopg.Connection[Any], new: psycopg.Connection[Any], configuration: Configuration
) -> None:
    """Have *new* stand for the session of *old*, and close *old* without ending the session.

    psycopg has no public way to make a second connection object for a session. Its record of
    prepared statements is true of the session, and psycopg_pool's marks of age belong to it.

    Args:
        old: The connection object that must not be used any more.
        new: One that was just made, on the same libpq connection.
        configuration: What *new* begins with; it gets adapters of its own.
    """
    new.row_factory = configuration.row_factory
    new.cursor_factory = configuration.cursor_factory
    new.server_cursor_factory = configuration.server_cursor_factory
    new._adapters = AdaptersMap(configuration.adapters)
    new._notice_handlers = list(configuration.notice_handlers)
    new._notify_handlers = list(configuration.notify_handlers)
    new._prepared = old._prepared
    new.prepare_threshold = configuration.prepare_threshold
    new.prepared_max = configuration.prepared_max
    new._autocommit = old._autocommit
    for name in ("_pool", "_created_at", "_expire_at"):
        if hasattr(old, name):
            setattr(new, name, getattr(old, name))
    # Has it remember the text of BEGIN, as it does at the first transaction.
    new._get_tx_start_command()
    old._closed = True
    old.pgconn = _CLOSED


def take_over(
    old: psycopg.Connection[Any], new: psycopg.Connection[Any], parameters: Mapping[str, Any]
) -> None:
    """Have *new*, made as psycopg's ``connect()`` would, stand for the session of *old*.

    Args:
        old: A connection object that is closed by this, without ending the session.
        new: One that was just made, on the same libpq connection.
        parameters: Those of ``connect()`` that are not libpq's count.
    """
    # What connect() does with them, which has no public name.
    new._autocommit = bool(parameters.get("autocommit"))
    new.row_factory = parameters.get("row_factory") or new.row_factory
    new.cursor_factory = parameters.get("cursor_factory") or new.cursor_factory
    if (context := parameters.get("context")) is not None:
        new._adapters = AdaptersMap(context.adapters)
    new.prepare_threshold = parameters.get("prepare_threshold", new.prepare_threshold)
    old._closed = True
    old.pgconn = _CLOSED


class AsMade(NamedTuple):
    """What a connection object had for attributes when it was made, and what its parts had.

    The values alone are compared, which takes a tenth of what dictionaries take: each has its
    place, and one attribute more makes the list longer.
    """

    values: list[object]
    """Of the object, its adapters and their types, one after the other."""
    adapters: dict[str, Any]
    """The attributes that its adapters have now."""
    types: dict[str, Any]
    """Those of their types."""
    prepared: Any
    """Its memory of prepared statements, which is the session's and may change."""
    prepare_threshold: int | None
    prepared_max: int | None


def as_made(connection: psycopg.Connection[Any]) -> AsMade:
    """Describe *connection*, which was just made, so that each change of it can be seen.

    An object and its parts are unchanged as long as the values of their ``vars()`` equal these.
    What is changed in place is copied; what adapters share with others is copied by psycopg before
    it changes.
    """
    adapters, prepared = connection.adapters, connection._prepared
    parts = vars(connection), vars(adapters), vars(adapters.types)
    return AsMade(
        [
            value.copy() if name in _CHANGED_IN_PLACE else value
            for part in parts
            for name, value in part.items()
        ],
        *parts[1:],
        prepared,
        prepared.prepare_threshold,
        prepared.prepared_max,
    )


def forget_prepared(connection: psycopg.Connection[Any]) -> None:
    """Take note that the session has no prepared statements any more.

    psycopg before 3.3.5 does not see that in the answer to DISCARD ALL, and later ones send another
    statement to remove what is gone.
    """
    connection._prepared.clear()
    connection._prepared._to_flush.clear()


def is_piping(connection: psycopg.Connection[Any]) -> bool:
    """Tell whether the connection is within a pipeline, or at its beginning or end."""
    return connection._pipeline is not None


def is_in_block(connection: psycopg.Connection[Any]) -> bool:
    """Tell whether psycopg refuses COMMIT and ROLLBACK, within a block of its `transaction()`."""
    return connection._num_transactions > 0


def begin(connection: psycopg.Connection[Any], wait: Callable[[PQGen[Any]], Any]) -> None:
    """Begin the transaction that the next statement is to be run in, if one is due.

    Args:
        connection: Whose; its lock is held.
        wait: psycopg's own `wait` of the connection.
    """
    wait(connection._start_query())


def run(
    connection: psycopg.Connection[Any],
    wait: Callable[[PQGen[Any]], Any],
    command: str,
) -> list[PGresult]:
    """Run *command* on a connection whose lock the caller holds, and return its results.

    psycopg's cursors take the lock, so none of them can be used amid what psycopg does itself. As
    they do, it begins a transaction first where one is due.

    Args:
        connection: Where to run it.
        wait: psycopg's own `wait` of the connection.
        command: One or more statements without parameters.

    Raises:
        psycopg.Error: The server's, or the connection's.
    """
    if connection.pgconn.transaction_status == pq.TransactionStatus.IDLE:
        begin(connection, wait)
    return send(connection, wait, command)


def begin_command(connection: psycopg.Connection[Any]) -> str:
    """Return BEGIN with the isolation level and the modes that were set on the connection."""
    return connection._get_tx_start_command().decode()


def send(
    connection: psycopg.Connection[Any],
    wait: Callable[[PQGen[Any]], Any],
    command: str,
) -> list[PGresult]:
    """Run *command* as `run`, without beginning a transaction."""
    connection.pgconn.send_query(command.encode())
    results: list[PGresult] = wait(generators.execute(connection.pgconn))
    for result in results:
        if result.status == pq.ExecStatus.FATAL_ERROR:
            raise psycopg.errors.error_from_result(result, encoding=connection.info.encoding)
    return results


def move_cursor(cursor: psycopg.Cursor[Any], connection: psycopg.Connection[Any]) -> None:
    """Have *cursor* run its next statement on another connection.

    A cursor of psycopg's stays with the connection that made it. What was set on it (adapters,
    row factory, format) and the rows of its last statement stay.
    """
    cursor._conn = connection
    cursor._pgconn = connection.pgconn
    # Else the next statement, if it is the same, would be adapted for the old connection.
    cursor._last_query = None


def part(cursor: psycopg.Cursor[Any]) -> None:
    """Have a closed cursor refer to its connection no more; its statement can still be read."""
    cursor._conn, cursor._pgconn, cursor._tx = _CLOSED_CONNECTION, _CLOSED, Transformer()
    if cursor._query is not None:
        cursor._query._tx = cursor._tx
