"""Isolation level and READ ONLY of one transaction, on a connection that others use too."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from django_pooled.backend.wrapper import DatabaseWrapper

    from .policy import Policy

__all__ = ["set_characteristics"]


def set_characteristics(policy: Policy, wrapper: DatabaseWrapper) -> Callable[[], None]:
    """Give the transaction that begins next what *policy* says; return what takes it back.

    psycopg puts both into the BEGIN that it sends with the first statement. Without effect where
    a transaction has begun, in a TestCase.
    """
    if (policy.isolation_level is None and policy.read_only is None) or wrapper.in_atomic_block:
        return _nothing
    wrapper.ensure_connection()
    with wrapper.wrap_database_errors:
        if policy.isolation_level is not None:
            wrapper.connection.isolation_level = policy.isolation_level
        if policy.read_only is not None:
            wrapper.connection.read_only = policy.read_only
    return partial(_restore, policy, wrapper)


def _nothing() -> None:
    pass


def _restore(policy: Policy, wrapper: DatabaseWrapper) -> None:
    connection = wrapper.connection
    if connection is None or connection.closed or wrapper.in_atomic_block:
        return
    if policy.isolation_level is not None:
        configured = "isolation_level" in wrapper.settings_dict["OPTIONS"]
        connection.isolation_level = wrapper.isolation_level if configured else None
    if policy.read_only is not None:
        connection.read_only = None
