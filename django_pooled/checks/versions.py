"""Versions that pip only warns about when another package asked for others: E002 to E004, W026."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.core.checks import CheckMessage, Error
from django.core.checks import Warning as CheckWarning
from django.utils.version import get_version_tuple

from django_pooled.diagnostics.required_names import OLDEST
from django_pooled.diagnostics.required_packages import missing_package

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["NEWEST_POOL", "OLDEST_POOL", "check_versions"]

OLDEST_POOL, NEWEST_POOL = get_version_tuple(OLDEST["psycopg-pool"]), (3, 3)
"""The minor versions of psycopg_pool that the tests are run with."""


def check_versions(**kwargs: object) -> list[CheckMessage]:
    """Check that all packages are there, and that their versions are the right ones."""
    missing = missing_package()
    if missing is not None:
        hint = f"{missing.remedy}; psycopg2 may stay for other packages."
        return [Error(f"{missing}.", hint=hint, id="django_pooled.E004")]
    import psycopg
    import psycopg_pool

    return list(_outdated(psycopg.__version__, psycopg_pool.__version__))


def _outdated(psycopg: str, psycopg_pool: str) -> Iterator[CheckMessage]:
    if get_version_tuple(psycopg) < get_version_tuple(OLDEST["psycopg"]):
        yield Error(
            f"psycopg {psycopg} is too old for django_pooled.",
            hint=f"Install psycopg {OLDEST['psycopg']} or later.",
            id="django_pooled.E002",
        )
    minor = get_version_tuple(psycopg_pool)[:2]
    if minor < OLDEST_POOL:
        yield Error(
            f"psycopg_pool {psycopg_pool} is too old for django_pooled.",
            hint=f"Install psycopg_pool {_text(OLDEST_POOL)} or later.",
            id="django_pooled.E003",
        )
    if minor > NEWEST_POOL:
        yield CheckWarning(
            f"django_pooled was not tested with psycopg_pool {psycopg_pool}, on whose inside it "
            f"builds. All that it needs of it is there, and may do something else by now.",
            hint=f"Install psycopg_pool {_text(NEWEST_POOL)}, or a newer django_pooled.",
            id="django_pooled.W026",
        )


def _text(minor: tuple[int, ...]) -> str:
    return ".".join(map(str, minor))
