"""Versions that pip only warns about when another package asked for others: E002 to E004."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.core.checks import CheckMessage, Error
from django.utils.version import get_version_tuple

from django_pooled.diagnostics.required_packages import INSTALL, missing_package

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["check_versions"]


def check_versions(**kwargs: object) -> list[CheckMessage]:
    """Check that all packages are there, and that their versions are the right ones."""
    missing = missing_package()
    if missing is not None:
        hint = f"{INSTALL}; psycopg2 may stay for other packages."
        return [Error(f"{missing}.", hint=hint, id="django_pooled.E004")]
    import psycopg
    import psycopg_pool

    return list(_outdated(psycopg.__version__, psycopg_pool.__version__))


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
