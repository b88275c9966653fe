"""Django Ninja: the function for one method of a path, whose view is the same for all methods."""

from __future__ import annotations

from types import FunctionType
from typing import Any

__all__ = ["function_for"]


def function_for(view: object, method: str | None = None) -> Any:
    """Return the function of a path's operation.

    Args:
        view: Any view; None is returned for those that are not Ninja's.
        method: Of the request; the first operation is taken if it is left out.
    """
    for operation in _operations(view):
        if method is None or method in getattr(operation, "methods", ()):
            return getattr(operation, "view_func", None)
    return None


def _operations(view: object) -> list[Any]:
    # The view is bound to a PathView, or closes over one, from version to version; there is no
    # public way from it.
    path_view = getattr(view, "__self__", None)
    while path_view is None and isinstance(view, FunctionType):
        inner = getattr(view, "__wrapped__", None)
        if inner is None and "self" in view.__code__.co_freevars:
            cell = (view.__closure__ or ())[view.__code__.co_freevars.index("self")]
            path_view = cell.cell_contents
        view = inner
    if type(path_view).__module__.partition(".")[0] != "ninja":
        return []
    operations = getattr(path_view, "operations", None)
    return operations if isinstance(operations, list) else []
