"""Django REST framework: the function below ``@api_view``."""

from __future__ import annotations

import inspect
from types import FunctionType

__all__ = ["decorated_by_api_view"]


def decorated_by_api_view(handler: object) -> object:
    """Return the function that a method of a class made by ``@api_view`` calls.

    The class keeps it in the closure of the method alone, without its attributes.

    Args:
        handler: The method of any class-based view; one that is not of such a class is returned.
    """
    if isinstance(handler, FunctionType) and handler.__module__ == "rest_framework.decorators":
        found: object = inspect.getclosurevars(handler).nonlocals.get("func", handler)
        return found
    return handler
