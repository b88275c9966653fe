"""Keeps views out of ATOMIC_REQUESTS that have to answer without a database."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from django.db import connections
from django.db.transaction import non_atomic_requests

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["never_atomic"]

V = TypeVar("V", bound="Callable[..., Any]")


def never_atomic(view: V) -> V:
    """Have no transaction opened around a view, in whichever database ATOMIC_REQUESTS is set.

    It would be a checkout, within the pool's own timeout.

    Args:
        view: Marked as it is, so other decorators belong below.
    """
    for alias in connections:
        non_atomic_requests(alias)(view)
    return view
