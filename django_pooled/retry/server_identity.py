"""Which server a connection leads to, in which incarnation, and which backend serves it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import psycopg

from django_pooled.sql.sqlstates import is_refusal

from .server_questions import NO_QUESTIONS, Questions, ask, find_out

if TYPE_CHECKING:
    from django_pooled.pool.connection import PooledConnection

__all__ = [
    "Backend",
    "Server",
    "ask_backend",
    "learn",
    "learn_anew",
    "learned_of",
    "prove_reading_in_full",
    "questions_for",
    "read_backend",
]


class Server(NamedTuple):
    """The server of a backend; None for values that it hides."""

    system: str | None
    incarnation: str | None
    """Changes with each crash and failover, after which transaction ids are reused.

    None unless all parts of it are told: some of them alone may be those of another incarnation.
    """
    in_recovery: bool


class Backend(NamedTuple):
    """The server process of a connection, or behind a pooler that of a transaction."""

    pid: str | None
    started: str | None
    server: Server


class ServerQuestions:
    """The questions that one server answers to one role in one database, for all connections."""

    def __init__(self, questions: Questions) -> None:
        self.questions = questions


class Learned:
    """What was learned of the server behind a connection; kept as long as its session."""

    __slots__ = ("backend", "is_direct", "server")

    def __init__(self) -> None:
        self.server: ServerQuestions | None = None
        """Set once all of it is learned."""
        self.is_direct: bool = False
        """Whether the server's process is the one that logged the connection in: no pooler's."""
        self.backend: Backend | None = None
        """That of a direct connection, which stays the same."""


_MOST = 100
"""Servers that are kept; each change of credentials adds one."""

# Single operations on a dictionary need no lock. Two threads may learn the same at once.
_servers: dict[tuple[object, ...], ServerQuestions] = {}


def learned_of(connection: PooledConnection) -> Learned:
    """Return what was learned of a connection's session."""
    learned: Learned | None = connection.session.learned
    if learned is None:
        learned = connection.session.learned = Learned()
    return learned


def questions_for(connection: PooledConnection) -> Questions:
    """Return what may be asked on a connection; nothing, as long as nothing was learned."""
    server = learned_of(connection).server
    return server.questions if server is not None else NO_QUESTIONS


def learn(connection: PooledConnection) -> None:
    """Find out which questions the connection's server answers, and which backend serves it.

    Costs a round trip once for a connection, and a few once for a server.

    Args:
        connection: One in autocommit, without a transaction.

    Raises:
        psycopg.Error: The connection was lost, or the server failed for a reason that may pass.
    """
    learned = learned_of(connection)
    if learned.server is not None:
        return
    key = _key(connection)
    server = _servers.get(key)
    try:
        if server is not None and server.questions.backend is not None:
            ask_backend(connection, server.questions.backend)
    except psycopg.Error as error:
        if not is_refusal(error):
            raise
        server = None
    if server is None:
        server = ServerQuestions(_find_out(connection))
        if len(_servers) >= _MOST:
            _servers.clear()
        _servers[key] = server
    learned.server = server


def learn_anew(connection: PooledConnection, asked: Questions) -> bool:
    """Find out whether a server refuses a question by now, since privileges can be revoked.

    Args:
        connection: As for `learn`.
        asked: The questions of a transaction that has failed.

    Raises:
        psycopg.Error: As `learn`.
    """
    learn(connection)
    server = learned_of(connection).server
    assert server is not None
    # Unless another thread has found out already.
    if server.questions is asked:
        server.questions = _find_out(connection)
    return not set(server.questions.refused) <= set(asked.refused)


def prove_reading_in_full(connection: PooledConnection) -> None:
    """Let no transaction on a connection's database count on its having no foreign tables."""
    server = learned_of(connection).server
    if server is not None:
        questions = server.questions
        server.questions = questions._replace(quick_reading=questions.reading)


def _find_out(connection: PooledConnection) -> Questions:
    questions = find_out(connection)
    if questions.backend is not None:  # pragma: no branch - told to mypy
        ask_backend(connection, questions.backend)
    return questions


def ask_backend(connection: PooledConnection, question: str) -> Backend:
    """Ask for the backend that serves a connection, and keep the answer if it cannot change.

    Raises:
        psycopg.Error: As `ask`.
    """
    return read_backend(connection, ask(connection, question))


def read_backend(connection: PooledConnection, values: list[str | None]) -> Backend:
    """Read the answer to the question for the backend.

    A direct connection keeps its backend. Behind a pooler such as PgBouncer each transaction may
    have another one, with another pid than the connection was opened with, so it is asked for each
    time; and on a standby, which may be promoted meanwhile.
    """
    pid, started, system, *life, in_recovery = values
    # On a standby there is no current WAL file, and nothing that could be committed.
    incarnation = "/".join(part or "" for part in life) if all(life) else None
    backend = Backend(pid, started, Server(system, incarnation, in_recovery != "false"))
    learned = learned_of(connection)
    learned.is_direct = pid == str(connection.info.backend_pid)
    stays = learned.is_direct and not backend.server.in_recovery
    learned.backend = backend if stays else None
    return backend


def _key(connection: PooledConnection) -> tuple[object, ...]:
    info = connection.info
    return (*connection.place, info.dbname, info.user, info.server_version)
