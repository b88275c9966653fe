"""What is private of Django and needed here, each with the reason.

A name that is gone is found out as this module is loaded; when what a name stands for changes, the
tests of this module fail.
"""

from __future__ import annotations

from typing import Any

from django.db import utils
from django.db.backends.base import base
from django.db.backends.postgresql import base as postgresql
from django.db.backends.postgresql import psycopg_any

from django_pooled.diagnostics.required_names import Need, require

__all__ = [
    "NO_DB_ALIAS",
    "Cursor",
    "CursorMixin",
    "DatabaseErrorWrapper",
    "ServerBindingCursor",
    "ServerSideCursor",
    "register_tzloader",
]

require(
    "django",
    (
        Need(base, "NO_DB_ALIAS", "know the connections that are for maintenance"),
        Need(psycopg_any, "register_tzloader", "give rows of server-side cursors a time zone"),
        Need(utils, "DatabaseErrorWrapper", "see each error of the database"),
        Need(
            postgresql,
            "Cursor ServerBindingCursor ServerSideCursor CursorMixin",
            "have the connection see each statement",
        ),
        Need(postgresql.DatabaseWrapper, "_close", "give connections back to the pool"),
        Need(
            postgresql.DatabaseWrapper,
            "_configure_connection _configure_role _configure_timezone",
            "configure a new connection",
        ),
        Need(
            postgresql.DatabaseWrapper,
            "_commit _rollback _savepoint_commit _savepoint_rollback",
            "know how a transaction ends",
        ),
    ),
)

NO_DB_ALIAS: str = base.NO_DB_ALIAS
register_tzloader: Any = psycopg_any.register_tzloader
Cursor = postgresql.Cursor
CursorMixin = postgresql.CursorMixin
DatabaseErrorWrapper = utils.DatabaseErrorWrapper
ServerBindingCursor = postgresql.ServerBindingCursor
ServerSideCursor = postgresql.ServerSideCursor
