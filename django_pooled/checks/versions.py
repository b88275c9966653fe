"""Versions that pip only warns about when another package asked for others: E002 to E004."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from django.core.checks import CheckMessage, Error
from django.utils.version import get_version_tuple

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["check_versions"]


def check_versions(**kwargs: object) -> list[CheckMessage]:
    """Check that psycopg 3 is there, and that what the pool builds on is new and old enough."""
    try:
        import psycopg
        import psycopg_pool
    except ImportError as error:
        return [_missing(error)]
    return list(_outdated(psycopg.__version__, psycopg_pool.__version__))


def _missing(error: ImportError) -> CheckMessage:
    # Found, not imported: whether it works is not of interest.
    other = " psycopg2 is installed, which has no part in it." if find_spec("psycopg2") else ""
    return Error(
        f"django_pooled needs psycopg 3 and psycopg_pool: {error}.{other}",
        hint="pip install 'psycopg[binary]' psycopg-pool; psycopg2 may stay for other packages.",
        id="django_pooled.E004",
    )


def _outdated(psycopg: str, psycopg_pool: str) -> Iterator[CheckMessage]:
    if get_version_tuple(psycopg) < (3, 2, 4):
        yield Error(
            f"psycopg {psycopg} is too old for django_pooled.",
            hint="Install psycopg 3.2.4 or later.",
            id="django_pooled.E002",
        )
    if get_version_tuple(psycopg_pool)[:2] != (3, 3):
        yield Error(
            f"psycopg_pool {psycopg_pool} is not the one that django_pooled builds on; its "
            f"internals differ between minor versions.",
            hint="Install psycopg_pool 3.3.",
            id="django_pooled.E003",
        )
