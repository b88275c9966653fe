"""Asks for private names of other packages as this package is loaded."""

from __future__ import annotations

from contextlib import contextmanager
from importlib.metadata import version
from inspect import Parameter, isfunction, signature
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from django.core.exceptions import ImproperlyConfigured
from django.utils.version import get_version_tuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = [
    "OLDEST",
    "Need",
    "UnsupportedRelease",
    "changed_overrides",
    "needed_of",
    "require",
    "require_overrides",
    "title_of",
]


class UnsupportedRelease(ImproperlyConfigured):
    """The inside of another package is not what this one builds on."""


OLDEST = {"django": "5.2", "psycopg": "3.2.4", "psycopg-pool": "3.3"}
"""The releases that setup.cfg asks for, by the packages' names on PyPI."""

_LACKS = "does not have what django_pooled needs of its inside"


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


@contextmanager
def needed_of(distribution: str) -> Iterator[None]:
    """Refuse to start with a release of another package if what a block imports of it has moved.

    Otherwise a server would start without the engine: Django calls a backend that cannot be
    imported unavailable, at the first query.

    Args:
        distribution: The package's name on PyPI; that it is there at all is known.

    Raises:
        UnsupportedRelease: A module, or a name in it, is not where it was.
    """
    try:
        yield
    except ImportError as error:
        # Python says which one, and where it was looked for.
        _refuse(distribution, _LACKS, [str(error)], error)


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
        _refuse(distribution, _LACKS, missing)


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


def _refuse(
    distribution: str, why: str, names: list[str], cause: Exception | None = None
) -> NoReturn:
    installed, oldest = version(distribution), OLDEST.get(distribution)
    if oldest is not None and get_version_tuple(installed) < get_version_tuple(oldest):
        remedy = f"Install {distribution} {oldest} or later."
    else:
        remedy = f"Install an older {distribution}, or a newer django_pooled that knows this one."
    raise UnsupportedRelease(
        f"{distribution} {installed} {why}: {', '.join(names)}. {remedy}"
    ) from cause


def title_of(owner: object) -> str:
    """Return the name of what has names, for messages."""
    name = getattr(owner, "__qualname__", None) or getattr(owner, "__name__", None)
    return str(name or type(owner).__name__)
