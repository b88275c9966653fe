"""Keeps views out of ATOMIC_REQUESTS that must answer without a database, or begin on their own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from .django_private import NON_ATOMIC_REQUESTS

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["is_non_atomic", "never_atomic", "non_atomic"]

V = TypeVar("V", bound="Callable[..., Any]")


class _EveryAlias(set[str]):
    """The databases in which a view has no transaction: all, whenever settings name them."""

    def __contains__(self, alias: object) -> bool:
        return True


def never_atomic(view: V) -> V:
    """Have no transaction opened around a view, in whichever database ATOMIC_REQUESTS is set.

    It would be a checkout, within the pool's own timeout, and a failure while the database is away.

    Args:
        view: Marked as it is, so other decorators belong below.
    """
    # Not by name: the aliases of the settings may not be known yet, and tests add some later.
    setattr(view, NON_ATOMIC_REQUESTS, _EveryAlias())
    return view


def non_atomic(view: V, alias: str, wrapped: object) -> V:
    """Have no transaction opened around a view in one database, nor where *wrapped* has none.

    Args:
        view: Marked as it is.
        alias: Key of the database.
        wrapped: The callable that *view* stands for; its own mark is left alone.
    """
    theirs = getattr(wrapped, NON_ATOMIC_REQUESTS, None)
    if isinstance(theirs, _EveryAlias):
        return never_atomic(view)
    # A callable object may have an answer for every attribute.
    ours = {alias, *theirs} if isinstance(theirs, set | frozenset) else {alias}
    setattr(view, NON_ATOMIC_REQUESTS, ours)
    return view


def is_non_atomic(view: object, alias: str) -> bool:
    """Tell whether a view has no transaction opened around it in one database.

    It has opted out by Django's ``non_atomic_requests()``, or begins its own.
    """
    aliases = getattr(view, NON_ATOMIC_REQUESTS, None)
    # A callable object may have an answer for every attribute.
    return isinstance(aliases, set | frozenset) and alias in aliases
