"""Asks for private names of other packages as this package is loaded."""

from __future__ import annotations

from importlib.metadata import version
from inspect import Parameter, isfunction, signature
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from django.core.exceptions import ImproperlyConfigured

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = [
    "Need",
    "UnsupportedRelease",
    "changed_overrides",
    "require",
    "require_overrides",
    "title_of",
]


class UnsupportedRelease(ImproperlyConfigured):
    """The inside of another package is not what this one builds on."""


class Need(NamedTuple):
    """A private name that the package cannot do without."""

    owner: object
    """A module, a class, an object that has the fields of its class, or a function that uses
    them."""
    names: str
    """One or several, with spaces between them."""
    purpose: str
    """What they are needed for, after "to"."""
    takes: str | None = None
    """The arguments that each of them is called with, those by keyword as "delay="; None if they
    are not called."""


def require(distribution: str, needs: Iterable[Need]) -> None:
    """Refuse to start with a release of another package whose private names have changed.

    Otherwise a missing name would be noticed in the middle of a transaction.

    Args:
        distribution: The package's name on PyPI.
        needs: The names that are used.

    Raises:
        UnsupportedRelease: Names are gone, or cannot be called as they are: which ones, and what
            each is for.
    """
    missing = [each for need in needs for each in _missing(need)]
    if missing:
        _refuse(distribution, "does not have what django_pooled needs of its inside", missing)


def require_overrides(distribution: str, ours: type, theirs: type) -> None:
    """Refuse to start with a release that may call a method which is replaced with other arguments.

    Otherwise each of those calls would fail, often in a thread of the other package.

    Args:
        distribution: The package's name on PyPI.
        ours: The class that is built on theirs.
        theirs: A class of the package.

    Raises:
        UnsupportedRelease: A method of theirs takes arguments that ours does not.
    """
    if changed := list(changed_overrides(ours, theirs)):
        _refuse(distribution, "has changed methods that django_pooled replaces", changed)


def changed_overrides(ours: type, theirs: type) -> Iterator[str]:
    """Yield the methods of *theirs* that take arguments which those of *ours* do not.

    Python's own methods are left out: it is Python that calls them.
    """
    for name, own in vars(ours).items():
        other = getattr(theirs, name, None)
        if not name.startswith("__") and isfunction(own) and isfunction(other):
            given = signature(other).parameters.values()
            if not (_takes(own, given, by_keyword=False) and _takes(own, given, by_keyword=True)):
                has = f"{theirs.__name__}.{name}{signature(other)}"
                yield f"{has}, replaced by {ours.__name__}.{name}{signature(own)}"


def _missing(need: Need) -> Iterator[str]:
    for name in need.names.split():
        if not _has(need.owner, name):
            yield f"{title_of(need.owner)}.{name} (to {need.purpose})"
        elif need.takes is not None and not _can_be_called(getattr(need.owner, name), need.takes):
            arguments = ", ".join(need.takes.split())
            yield f"{title_of(need.owner)}.{name}({arguments}) (to {need.purpose})"


def _has(owner: object, name: str) -> bool:
    return hasattr(owner, name) or (isfunction(owner) and name in owner.__code__.co_names)


def _can_be_called(function: Any, takes: str) -> bool:
    arguments = takes.split()
    positional = [each for each in arguments if not each.endswith("=")]
    by_keyword = {each[:-1]: None for each in arguments if each.endswith("=")}
    return _binds(function, positional, by_keyword)


def _takes(function: Any, parameters: Iterable[Parameter], *, by_keyword: bool) -> bool:
    """Tell whether *function* can be called with all *parameters* of another, in one way or both.

    Args:
        function: What is called.
        parameters: Those of the other.
        by_keyword: Whether those go by keyword that may go by position too.
    """
    positional: list[object] = []
    keywords: dict[str, object] = {}
    for each in parameters:
        if each.kind is Parameter.KEYWORD_ONLY or (
            by_keyword and each.kind is Parameter.POSITIONAL_OR_KEYWORD
        ):
            keywords[each.name] = None
        elif each.kind in (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD):
            positional.append(None)
    return _binds(function, positional, keywords)


def _binds(function: Any, positional: list[Any], keywords: dict[str, Any]) -> bool:
    try:
        signature(function).bind(*positional, **keywords)
    except TypeError:
        return False
    return True


def _refuse(distribution: str, why: str, names: list[str]) -> NoReturn:
    raise UnsupportedRelease(
        f"{distribution} {version(distribution)} {why}: {', '.join(names)}. Install an older "
        f"{distribution}, or a newer django_pooled that knows this one."
    )


def title_of(owner: object) -> str:
    """Return the name of what has names, for messages."""
    name = getattr(owner, "__qualname__", None) or getattr(owner, "__name__", None)
    return str(name or type(owner).__name__)
