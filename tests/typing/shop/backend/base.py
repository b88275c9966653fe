"""A database engine built on this one."""

from __future__ import annotations

from typing import Any

from django.conf import settings

from django_pooled import base


class DatabaseWrapper(base.DatabaseWrapper):
    display_name = "PostgreSQL, pooled"

    def get_connection_params(self) -> dict[str, Any]:
        params = super().get_connection_params()
        params.setdefault("options", f"-c search_path={settings.ROOT_URLCONF}")
        return params
