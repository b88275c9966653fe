"""Refuses callables that retry_transaction cannot decorate, and says what to write instead."""

from __future__ import annotations

import inspect
import sys
from collections.abc import MutableMapping
from functools import cached_property, partial, partialmethod, singledispatchmethod
from types import FunctionType, MethodType, WrapperDescriptorType
from typing import TYPE_CHECKING, Any

from asgiref.sync import iscoroutinefunction
from django.utils.functional import cached_property as django_cached_property

from django_pooled.replay.tasks import refuse_tasks

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["REBINDING", "is_async", "is_dispatch", "refuse_what_cannot_be_run_again"]

REBINDING = (staticmethod, classmethod)
"""They tell a class how to call a function, so they belong around the decorated function."""

_MEMOIZED = frozenset(
    {
        *("cache_info", "cache_clear", "cache_parameters"),  # functools, and those modelled on it
        *("cache_key", "__cache_key__"),  # cachetools, diskcache
        *("call_and_shelve", "check_call_in_cache"),  # joblib
    }
)
"""Attributes of memoized functions."""

_MEMOIZING_PACKAGES = frozenset({"cachetools"})
"""Packages whose memoized methods have none of these attributes."""


def refuse_what_cannot_be_run_again(function: object) -> None:
    """Refuse a callable whose code does not run to its end at each call.

    Raises:
        TypeError: It says what to write instead.
    """
    refuse_tasks(function)
    name = _name_of(function)
    if inspect.isclass(function):
        raise TypeError(
            f"retry_transaction cannot decorate the class {name}; for a "
            f"class-based view use @method_decorator(retry_transaction, name='dispatch')."
        )
    _refuse_descriptors(function, name)
    if not callable(function):
        instead = f"; write retry_transaction(using={function!r})" * isinstance(function, str)
        raise TypeError(f"retry_transaction decorates a callable, not {function!r}{instead}")
    if inspect.isasyncgenfunction(function):
        raise TypeError(
            f"{name} is an async generator, which would run after its transaction ended: await all "
            f"of it in a coroutine function, and return a list."
        )
    if inspect.isgeneratorfunction(function):
        raise TypeError(
            f"{name} is a generator, which would run after its transaction ended: return a list."
        )
    for layer in _layers(function):
        if type(layer) is not FunctionType and isinstance(layer, REBINDING):
            kind = "classmethod" if isinstance(layer, classmethod) else "staticmethod"
            raise TypeError(
                f"{name} is a {kind} below another decorator, which retry_transaction would turn "
                f"into a plain method: write @{kind} above @retry_transaction."
            )
        if _is_memoized(layer):
            raise TypeError(
                f"{name} is memoized: after a restart the call would be answered from memory, and "
                f"nothing be committed. Put the cache above the decorator, as in "
                f"lru_cache(retry_transaction({name})), so that it keeps only what is committed."
            )


def is_async(function: object) -> bool:
    """Tell whether a call of *function* has to be awaited, as far as can be seen before it."""
    # Unlike inspect's, it knows Django's marks, such as that of as_view() with async methods.
    if iscoroutinefunction(function):
        return True
    return not isinstance(function, FunctionType | MethodType | partial) and iscoroutinefunction(
        inspect.getattr_static(type(function), "__call__", None)
    )


def is_dispatch(function: object) -> bool:
    """Tell whether this may be the ``dispatch()`` of a class-based view.

    It is a plain method, and returns a coroutine if the view's other methods are async.
    """
    return getattr(function, "__name__", None) == "dispatch"


def _refuse_descriptors(function: object, name: str) -> None:
    if isinstance(function, property | cached_property | django_cached_property):
        kind = type(function).__name__
        raise TypeError(
            f"retry_transaction cannot decorate a {kind}: write @{kind} above @retry_transaction."
        )
    if isinstance(function, partialmethod):
        raise TypeError(
            f"retry_transaction cannot decorate a partialmethod: decorate the method that it "
            f"calls, as in partialmethod(retry_transaction({_name_of(function.func)}), ...)."
        )
    if isinstance(function, singledispatchmethod):
        raise TypeError(
            f"retry_transaction cannot decorate a singledispatchmethod: decorate the function "
            f"that calls it, or each implementation, below @{name}.register."
        )


def _name_of(function: object) -> str:
    while isinstance(function, partial):
        function = function.func
    name: str = getattr(function, "__qualname__", "") or repr(function)
    return name


def _layers(function: object) -> Iterator[Any]:
    """Yield a callable and, one after the other, the callables that it wraps."""
    seen: set[int] = set()
    layer: Any = function
    while layer is not None and id(layer) not in seen:
        seen.add(id(layer))
        yield layer
        if isinstance(layer, partial):
            layer = layer.func
        elif isinstance(layer, MethodType):
            layer = layer.__func__
        elif (inner := getattr(layer, "__wrapped__", None)) is not None:
            layer = inner
        elif isinstance(layer, FunctionType):
            return
        else:
            # An object of a class with __call__(), which may be written in C.
            called = inspect.getattr_static(type(layer), "__call__", None)
            layer = None if isinstance(called, WrapperDescriptorType) else called


def _is_memoized(layer: Any) -> bool:
    """Tell whether a callable may answer without calling the one that it wraps."""
    if _is_memo(layer):
        return True
    if not isinstance(layer, FunctionType) or "__wrapped__" not in vars(layer):
        return False
    if "cache" in vars(layer):
        return True
    # Without such an attribute: a dictionary around a decorator's function, by its name. One that
    # the function itself closes over is logged: see Surroundings.
    around = list(_variables_around(layer))
    return any(
        isinstance(value, MutableMapping) and ("cache" in name.lower() or "memo" in name.lower())
        for name, value in around
    ) or any(_caches_pages(value) for _, value in around)


def _is_memo(layer: object) -> bool:
    # Not by getattr(): a mock has every attribute.
    if not _MEMOIZED.isdisjoint(getattr(layer, "__dict__", ())):
        return True
    kind = type(layer)
    return kind is not FunctionType and (
        kind.__module__.partition(".")[0] in _MEMOIZING_PACKAGES
        or any(hasattr(kind, mark) for mark in _MEMOIZED)
    )


def _variables_around(function: FunctionType) -> Iterator[tuple[str, object]]:
    cells = function.__closure__ or ()
    for name, cell in zip(function.__code__.co_freevars, cells, strict=True):
        try:
            yield name, cell.cell_contents
        except ValueError:
            # Not assigned yet.
            continue


def _caches_pages(value: object) -> bool:
    """Tell whether this is part of @cache_page, which stores a response before COMMIT."""
    pages: Any = sys.modules.get("django.middleware.cache")
    return (
        pages is not None
        and isinstance(value, FunctionType)
        and any(isinstance(one, pages.UpdateCacheMiddleware) for _, one in _variables_around(value))
    )
