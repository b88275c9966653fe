"""Isolation level, modes and time limits of one transaction, restored after it."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from psycopg import IsolationLevel

    from django_pooled.backend.wrapper import DatabaseWrapper
    from django_pooled.pool.connection import PooledConnection

    from .policy import Policy

__all__ = ["set_characteristics"]


def set_characteristics(policy: Policy, wrapper: DatabaseWrapper) -> Callable[[], None]:
    """Set what *policy* says for the next transaction; return the function that restores it.

    psycopg puts the modes into the BEGIN that it sends with the first statement; the time limits go
    along with that.
    """
    wrapper.ensure_connection()
    connection = wrapper.connection
    before = connection.isolation_level, connection.read_only, connection.deferrable
    with wrapper.wrap_database_errors:
        if policy.isolation_level is not None:
            connection.isolation_level = policy.isolation_level
        if policy.read_only is not None:
            connection.read_only = policy.read_only
        if policy.deferrable is not None:
            connection.deferrable = policy.deferrable
        if policy.time_limits:
            connection.time_limits = policy.time_limits
    return partial(_restore, policy, wrapper, connection, before)


def _restore(
    policy: Policy,
    wrapper: DatabaseWrapper,
    connection: PooledConnection,
    before: tuple[IsolationLevel | None, bool | None, bool | None],
) -> None:
    # Another one, which has taken its place, has none of it.
    if wrapper.connection is not connection or connection.closed or wrapper.in_atomic_block:
        return
    isolation_level, read_only, deferrable = before
    if policy.isolation_level is not None:
        connection.isolation_level = isolation_level
    if policy.read_only is not None:
        connection.read_only = read_only
    if policy.deferrable is not None:
        connection.deferrable = deferrable
    if policy.time_limits:
        connection.time_limits = None
