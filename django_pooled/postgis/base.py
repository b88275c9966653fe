"""The database backend: Django's GIS wrapper, with connections checked out of a pool."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.contrib.gis.db.backends.postgis import base as postgis

from django_pooled import base

from .django_private import known_types

if TYPE_CHECKING:
    import psycopg

__all__ = ["DatabaseWrapper"]


class DatabaseWrapper(base.DatabaseWrapper, postgis.DatabaseWrapper):
    """One thread's view of a spatial database; its connection comes from the process's pool."""

    def _configure_connection(self, connection: psycopg.Connection[Any]) -> bool:
        changed = super()._configure_connection(connection)  # type: ignore[misc]
        self.register_geometry_adapters(connection)
        return bool(changed)

    def prepare_database(self) -> None:
        """Have the extension, and no connection that was opened before its types were known."""
        before = known_types(self)
        super().prepare_database()
        if known_types(self) != before:
            self.close_pool()
