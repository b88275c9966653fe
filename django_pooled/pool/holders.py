"""Who holds a pool's connections: views, tasks and commands, or lines of code."""

from __future__ import annotations

from collections import Counter
from time import monotonic
from typing import TYPE_CHECKING

from django_pooled.diagnostics.redaction import one_line

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .checkout import Checkout

__all__ = ["holders"]

MOST = 3
"""Holders that are named; the others are counted."""


def holders(checkouts: Sequence[Checkout], max_size: int) -> str | None:
    """Say who holds the connections, for the error of a checkout that got none.

    Args:
        checkouts: Those under way.
        max_size: Most connections of the pool.

    Returns:
        For example "all 4 connections are in use, 3 by store.views.report, 1 by celery store.tidy,
        the longest for 6.0 s"; None if none is in use.
    """
    if not checkouts:
        return None
    number = len(checkouts)
    # A line's number would tell the holders of one function apart.
    names = [each.activity or each.where.function for each in checkouts]
    most = Counter(names).most_common(MOST)
    parts = [f"{count} by {one_line(name)}" for name, count in most]
    if others := number - sum(count for _, count in most):
        parts.append(f"{others} by others")
    longest = monotonic() - min(each.since for each in checkouts)
    if number == 1:
        which = "the only connection is" if max_size == 1 else "1 connection is"
        return f"{which} in use by {one_line(names[0])}, for {longest:.1f} s"
    which = f"all {number}" if number >= max_size else f"{number} of {max_size}"
    return f"{which} connections are in use, {', '.join(parts)}, the longest for {longest:.1f} s"
