"""Counters of several pools, or of one pool at two moments, combined figure by figure."""

from __future__ import annotations

from collections import Counter
from dataclasses import fields
from functools import reduce
from operator import add
from typing import TYPE_CHECKING, Any

from .counters import Counters
from .histogram import Histogram

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["combine", "total"]


def combine(one: Counters, other: Counters, how: Callable[[Any, Any], Any]) -> Counters:
    """Return counters whose figures are made of those of two others.

    The longest of the durations is always that of both together.

    Args:
        one: Counters of a pool.
        other: Those of another pool, or of another moment.
        how: Takes two numbers: `operator.add`, `operator.sub` or `max`.
    """
    names = [counter.name for counter in fields(Counters)]
    return Counters(
        **{name: _combined(getattr(one, name), getattr(other, name), how) for name in names}
    )


def total(counters: Iterable[Counters]) -> Counters:
    """Add counters up."""
    return reduce(lambda one, other: combine(one, other, add), counters, Counters())


def _combined(one: Any, other: Any, how: Callable[[Any, Any], Any]) -> Any:
    if isinstance(one, Histogram):
        made = Histogram()
        made.buckets = [how(*pair) for pair in zip(one.buckets, other.buckets, strict=True)]
        made.total = how(one.total, other.total)
        made.longest = max(one.longest, other.longest)
        return made
    if isinstance(one, dict):
        kinds = {kind: how(one.get(kind, 0), other.get(kind, 0)) for kind in {**one, **other}}
        return Counter(kinds) if isinstance(one, Counter) else kinds
    return how(one, other)
