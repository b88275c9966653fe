"""The names of a site and of the sessions of a process."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

__all__ = ["SITE_LENGTH", "SiteName", "session_name"]

SITE_LENGTH = 8
"""Characters of a site's key, which a socket's name has to have room for."""


class SiteName(NamedTuple):
    """The site that a pool belongs to."""

    key: str = ""
    """Tells it from others; the same in all of its processes."""
    settings: str = ""
    """The file of its settings, for people."""


@cache
def session_name(pid: int, host: str) -> str:
    """Name a process's sessions in pg_stat_activity, in the 63 bytes that the server keeps.

    https://www.postgresql.org/docs/current/runtime-config-logging.html#GUC-APPLICATION-NAME
    """
    return f"django {pid}@{host}".encode()[:63].decode(errors="ignore")
