"""A wrapper that has a word in everything between connecting and closing."""

from __future__ import annotations

from typing import Any

from django.db.backends.postgresql import base as postgresql
from django.db.backends.postgresql.schema import DatabaseSchemaEditor

calls: list[str] = []


class SchemaEditor(DatabaseSchemaEditor):
    """Theirs."""


class Cursor(postgresql.Cursor):
    """Theirs, instead of Django's."""


class DatabaseWrapper(postgresql.DatabaseWrapper):
    SchemaEditorClass = SchemaEditor

    def get_connection_params(self) -> dict[str, Any]:
        params = super().get_connection_params()
        calls.append("get_connection_params")
        return {**params, "application_name": "theirs"}

    def get_new_connection(self, conn_params: dict[str, Any]) -> Any:
        calls.append("get_new_connection")
        return super().get_new_connection(conn_params)

    def init_connection_state(self) -> None:
        calls.append("init_connection_state")
        super().init_connection_state()

    def create_cursor(self, name: str | None = None) -> Any:
        calls.append("create_cursor")
        return super().create_cursor(name)

    def close(self) -> None:
        calls.append("close")
        super().close()
