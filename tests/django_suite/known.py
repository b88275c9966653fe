"""Tests of Django's that may fail or be skipped on this backend alone, each with its reason."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .comparison import Reason

__all__ = ["known"]

#: By series of Django.
DIFFERENCES: dict[str, dict[str, Reason]] = {}


def known(series: str) -> dict[str, Reason]:
    """Return what may differ with one series of Django."""
    return DIFFERENCES.get(series, {})
