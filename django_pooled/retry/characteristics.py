"""Isolation level, modes and time limits of one transaction, restored after it."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from django_pooled.backend.wrapper import DatabaseWrapper

    from .policy import Policy

__all__ = ["set_characteristics"]


def set_characteristics(policy: Policy, wrapper: DatabaseWrapper) -> Callable[[], None]:
    """Set what *policy* says for the next transaction; return the function that restores it.

    psycopg puts the modes into the BEGIN that it sends with the first statement; the time limits go
    along with that.
    """
    wrapper.ensure_connection()
    with wrapper.wrap_database_errors:
        if policy.isolation_level is not None:
            wrapper.connection.isolation_level = policy.isolation_level
        if policy.read_only is not None:
            wrapper.connection.read_only = policy.read_only
        if policy.deferrable is not None:
            wrapper.connection.deferrable = policy.deferrable
        if policy.time_limits:
            wrapper.connection.time_limits = policy.time_limits
    return partial(_restore, policy, wrapper)


def _restore(policy: Policy, wrapper: DatabaseWrapper) -> None:
    connection = wrapper.connection
    if connection is None or connection.closed or wrapper.in_atomic_block:
        return
    if policy.isolation_level is not None:
        configured = "isolation_level" in wrapper.settings_dict["OPTIONS"]
        connection.isolation_level = wrapper.isolation_level if configured else None
    if policy.read_only is not None:
        connection.read_only = None
    if policy.deferrable is not None:
        connection.deferrable = None
    if policy.time_limits:
        connection.time_limits = None
