"""The private name of Django's GIS backend that is needed here, with the reason.

A name that is gone is found out as this module is loaded.
"""

from __future__ import annotations

from django.contrib.gis.db.backends.postgis import base as postgis

from django_pooled.diagnostics.required_names import Need, require

__all__ = ["known_types"]

require("django", (Need(postgis.DatabaseWrapper, "_type_infos", "know the types of PostGIS"),))


def known_types(wrapper: postgis.DatabaseWrapper) -> list[object]:
    """Return what Django knows of the types of PostGIS in a database, which it looks up once.

    Connections that were opened before it knew them have no adapters for them, and nothing public
    tells.
    """
    infos = wrapper._type_infos  # type: ignore[attr-defined]
    return [known.get(wrapper.alias) for known in infos.values()]
