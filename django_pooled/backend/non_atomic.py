"""Keeps views out of ATOMIC_REQUESTS that have to answer without a database."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["never_atomic"]

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
    # The attribute behind non_atomic_requests(), which exempts from one alias at a time: those of
    # the settings may not be known yet, and tests add some later.
    view._non_atomic_requests = _EveryAlias()  # type: ignore[attr-defined]
    return view
