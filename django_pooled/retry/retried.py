"""A function that is retried, with what is the same for all of its calls."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from django_pooled.activity import name_of
from django_pooled.replay import Surroundings

if TYPE_CHECKING:
    from collections.abc import Callable

    from .policy import Policy

__all__ = ["Retried"]

R = TypeVar("R")


class Retried(Generic[R]):
    """A decorated function.

    Args:
        function: The function.
        policy: How to try.
    """

    def __init__(self, function: Callable[..., R], policy: Policy) -> None:
        self.function = function
        self.policy = policy
        self.name: str = getattr(function, "__qualname__", "?")
        """For messages."""
        innermost: Any = function
        while isinstance(innermost, partial):
            innermost = innermost.func
        self.full_name: str = name_of(innermost)
        """Functions of one name share a budget."""
        self.surroundings = Surroundings(function)
        """What it works with besides its arguments."""
