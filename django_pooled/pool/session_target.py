"""What kind of server ``target_session_attrs`` asks for, and connections whose server is another.

libpq looks at the server when it connects, and never again:
https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNECT-TARGET-SESSION-ATTRS
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from .connection import PooledConnection

__all__ = ["is_read_only_meant", "misfit_for"]


def is_read_only_meant(target: str) -> bool | None:
    """Tell whether a read-only server is meant by it; None if it does not say."""
    if target in ("read-write", "primary"):
        return False
    return True if target in ("read-only", "standby", "prefer-standby") else None


def misfit_for(target: str) -> Callable[[PooledConnection], bool] | None:
    """Return what tells a connection whose server is not, or no more, what is asked for.

    Servers tell a change by themselves, with the answer to the next statement, from PostgreSQL 14
    on. Of older ones nothing is known, and each fits.
    """
    return _MISFITS.get(target)


def _cannot_write(connection: PooledConnection) -> bool:
    return connection.server_is_read_only


def _is_standby(connection: PooledConnection) -> bool:
    return connection.server_is_standby


def _can_write(connection: PooledConnection) -> bool:
    return connection.server_is_primary and not connection.server_is_read_only


def _is_primary(connection: PooledConnection) -> bool:
    return connection.server_is_primary


_MISFITS = {
    "read-write": _cannot_write,
    "primary": _is_standby,
    "read-only": _can_write,
    "standby": _is_primary,
}
