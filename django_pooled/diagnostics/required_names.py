"""Asks for private names of other packages as this package is loaded."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, NamedTuple

from django.core.exceptions import ImproperlyConfigured

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Need", "require"]


class Need(NamedTuple):
    """A private name that the package cannot do without."""

    owner: object
    """A module, a class, or an object that has the fields of its class."""
    names: str
    """One or several, with spaces between them."""
    purpose: str
    """What they are needed for, after "to"."""


def require(distribution: str, needs: Iterable[Need]) -> None:
    """Refuse to start with a release of another package whose private names have changed.

    Otherwise a missing name would be noticed in the middle of a transaction.

    Args:
        distribution: The package's name on PyPI.
        needs: The names that are used.

    Raises:
        ImproperlyConfigured: Names are gone: which ones, and what each is for.
    """
    gone = [
        f"{_title(need.owner)}.{name} (to {need.purpose})"
        for need in needs
        for name in need.names.split()
        if not hasattr(need.owner, name)
    ]
    if gone:
        raise ImproperlyConfigured(
            f"{distribution} {version(distribution)} does not have what django_pooled needs of "
            f"its inside: {', '.join(gone)}. Install an older {distribution}, or a newer "
            f"django_pooled that knows this one."
        )


def _title(owner: object) -> str:
    return str(getattr(owner, "__name__", None) or type(owner).__name__)
