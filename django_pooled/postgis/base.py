"""The database backend: Django's GIS wrapper, with connections checked out of a pool."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.contrib.gis.db.backends.postgis import base as postgis

from django_pooled import base

if TYPE_CHECKING:
    import psycopg

__all__ = ["DatabaseWrapper"]

# The "type: ignore"s below stand where django-stubs does not know a method that Django has.


class DatabaseWrapper(base.DatabaseWrapper, postgis.DatabaseWrapper):
    """One thread's view of a spatial database; its connection comes from the process's pool."""

    def _configure_connection(self, connection: psycopg.Connection[Any]) -> bool:
        changed = super()._configure_connection(connection)  # type: ignore[misc]
        self.register_geometry_adapters(connection)
        return bool(changed)

    def prepare_database(self) -> None:
        """Have the extension, and no connection that was opened before its types were known."""
        before = self._known_types()
        super().prepare_database()
        if self._known_types() != before:
            self.close_pool()

    def _known_types(self) -> list[object]:
        # Django looks the types up once for each alias.
        return [known.get(self.alias) for known in self._type_infos.values()]  # type: ignore[attr-defined]
