"""A whole address where a part of one belongs, refused before anything quotes it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from django.core.exceptions import ImproperlyConfigured

from django_pooled.diagnostics.redaction import ASSIGNMENT, USERINFO

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["refuse_addresses"]


def refuse_addresses(alias: str, settings: Mapping[str, Any]) -> None:
    """Refuse a whole address or connection string that stands where a part of it belongs.

    It can't work there, and libpq or the server would quote it, password and all: in errors,
    logs and figures.

    Args:
        alias: The key of the entry of ``settings.DATABASES``, for the message.
        settings: The entry.

    Raises:
        ImproperlyConfigured: There is one; the message does not repeat it.
    """
    options = settings.get("OPTIONS") or {}
    for key in ("NAME", "USER", "HOST", "PORT"):
        if _is_address(settings.get(key)):
            raise _refusal(f"DATABASES[{alias!r}][{key!r}]")
    for key in ("dbname", "user", "host", "hostaddr", "port", "service"):
        if _is_address(options.get(key)):
            raise _refusal(f"DATABASES[{alias!r}]['OPTIONS'][{key!r}]")


def _is_address(value: object) -> bool:
    if not isinstance(value, str) or not (":" in value or "=" in value):
        return False
    if value.startswith("/"):
        return False  # The folder of a socket may have any name.
    if "://" in value or re.search(USERINFO, value):
        return True
    if "=" not in value:
        return False
    # Here, since the system checks have to be imported without it.
    import psycopg
    from psycopg.conninfo import conninfo_to_dict

    try:
        return bool(conninfo_to_dict(value))
    except psycopg.Error:
        return re.search(ASSIGNMENT, value, re.IGNORECASE) is not None


def _refusal(place: str) -> ImproperlyConfigured:
    return ImproperlyConfigured(
        f"{place} is a whole address or connection string; expected one part of it: give the "
        f"parts as NAME, USER, PASSWORD, HOST and PORT."
    )
