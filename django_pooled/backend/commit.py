"""COMMIT outside of retry_transaction, and how the outcome of any COMMIT is told."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg
from psycopg.pq import ConnStatus, TransactionStatus

from django_pooled.errors import AmbiguousCommit
from django_pooled.pool import psycopg_private
from django_pooled.pool.connection import PooledConnection
from django_pooled.sql.sqlstates import UNKNOWN_OUTCOME, psycopg_error

if TYPE_CHECKING:
    from collections.abc import Callable

    from django.db.backends.base.base import BaseDatabaseWrapper

__all__ = [
    "ambiguous",
    "close_if_interrupted",
    "commit_once",
    "is_idle",
    "is_known_to_have_failed",
]

_ANSWERED = (TransactionStatus.IDLE, TransactionStatus.INERROR)
"""The states of a connection to which the server has sent its last word."""


def commit_once(wrapper: BaseDatabaseWrapper, send: Callable[[], None]) -> None:
    """Commit a transaction that cannot be run again.

    Raises:
        django.db.Error: Nothing was committed.
        AmbiguousCommit: The connection was lost meanwhile. Anything else that says "lost" would
            read as "nothing happened, try again".
    """
    began = wrapper.connection.pgconn.transaction_status == TransactionStatus.INTRANS
    try:
        send()
    except Exception as error:
        if began and psycopg_error(error) and not is_known_to_have_failed(wrapper, error):
            raise ambiguous(wrapper) from error
        raise


def close_if_interrupted(wrapper: BaseDatabaseWrapper, error: BaseException) -> None:
    """Close the connection if *error* interrupted COMMIT or ROLLBACK and is not the database's.

    A time limit of the caller's own, for instance, which may be no Exception at all. On a
    connection that still waits for an answer, or is still in its transaction, Django's next step
    would fail, and that error take the place of the interruption.
    """
    if psycopg_error(error) is None and not is_idle(wrapper):
        wrapper.close()


def is_idle(wrapper: BaseDatabaseWrapper) -> bool:
    """Tell whether the connection is there, and no transaction is open on it."""
    connection = wrapper.connection
    return connection is not None and connection.info.transaction_status == TransactionStatus.IDLE


def is_known_to_have_failed(wrapper: BaseDatabaseWrapper, error: BaseException) -> bool:
    """Tell whether the server itself said so: on a live connection that waits for no answer.

    Or whether psycopg did, which refuses to send COMMIT within a block of its ``transaction()``.
    """
    connection, found = wrapper.connection, psycopg_error(error)
    if (
        isinstance(found, psycopg.ProgrammingError)
        and found.sqlstate is None
        and isinstance(connection, PooledConnection)
        and psycopg_private.is_in_block(connection)
    ):
        return True
    return (
        found is not None
        and found.sqlstate is not None
        and found.sqlstate not in UNKNOWN_OUTCOME
        and connection is not None
        and connection.pgconn.status == ConnStatus.OK
        and connection.info.transaction_status in _ANSWERED
    )


def ambiguous(wrapper: BaseDatabaseWrapper) -> AmbiguousCommit:
    """Make the error for a COMMIT of which it cannot be told whether it was done."""
    return AmbiguousCommit(
        f"database {wrapper.alias!r}: the connection was lost during COMMIT: it is "
        f"unknown whether the transaction was committed",
        alias=wrapper.alias,
    )
