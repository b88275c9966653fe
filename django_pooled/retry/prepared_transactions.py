"""Rolls back a transaction that its function has prepared for two-phase commit."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import psycopg
from django.db import Error
from psycopg import sql

from django_pooled.diagnostics.log_fields import event_fields

from .server_identity import learn
from .transaction_status import Relation, relation_of

if TYPE_CHECKING:
    from django_pooled.backend.wrapper import DatabaseWrapper

    from .transaction_status import TransactionIdentity

__all__ = ["roll_back_prepared"]

logger = logging.getLogger("django_pooled.retry")

# The view has the id without its epoch:
# https://www.postgresql.org/docs/current/view-pg-prepared-xacts.html
_PREPARED = """SELECT gid FROM pg_catalog.pg_prepared_xacts
WHERE transaction = '{xid}'::pg_catalog.xid AND database = pg_catalog.current_database()"""


def roll_back_prepared(wrapper: DatabaseWrapper, identity: TransactionIdentity | None) -> None:
    """Roll back a transaction that was prepared in a way that could not be refused.

    It would hold its locks for ever, through restarts of the server too.

    Args:
        wrapper: Outside of the transaction, which PREPARE TRANSACTION has ended.
        identity: The transaction; without an id it cannot be found.
    """
    if identity is None or identity.xid is None:
        return
    try:
        wrapper.ensure_connection()
        connection = wrapper.connection
        learn(connection)
        # Any session will do where the id means the same transaction.
        if relation_of(connection, identity) is not Relation.SAME_INCARNATION:
            return
        [found] = connection.ask(_PREPARED.format(xid=int(identity.xid) % 2**32))
        for row in range(found.ntuples):
            gid = (found.get_value(row, 0) or b"").decode(connection.info.encoding)
            connection.ask(sql.SQL("ROLLBACK PREPARED {}").format(gid).as_string(connection))
    except (psycopg.Error, Error) as error:
        logger.warning(
            "database %r: cannot tell whether a transaction is still prepared",
            wrapper.alias,
            extra=event_fields("prepared_stays", alias=wrapper.alias, error=error),
        )
