"""Context variables of a thread, lent to the task that runs a coroutine for it."""

from __future__ import annotations

from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from .asgiref_private import is_same, transplanted

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextvars import Context, ContextVar, Token

__all__ = ["LentContext"]


class LentContext:
    """The variables of a thread that the task does not have, and takes back afterwards.

    The thread began with a copy of the task's context. What it has set since then, such as the
    attempt that notes what is saved, belongs to the block of the thread that set it, and must not
    stay in the task. What the coroutine sets stays there, as after any ``await``; if it is run
    again, the variables have been restored in the thread, and the task gets those values for good.
    """

    def __init__(self) -> None:
        self._of_thread: set[ContextVar[Any]] | None = None

    @contextmanager
    def within(self, context: Context) -> Iterator[None]:
        """Have the running task see the variables of *context* in this block."""
        changed = {
            variable: transplanted(value)
            for variable, value in context.items()
            if not is_same(variable.get(_MISSING), value)
        }
        if self._of_thread is None:
            # Nothing was restored yet.
            self._of_thread = set(changed)
        tokens: list[tuple[ContextVar[Any], Token[Any]]] = []
        for variable, value in changed.items():
            token = variable.set(value)
            if variable in self._of_thread:
                tokens.append((variable, token))
        try:
            yield
        finally:
            for variable, token in tokens:
                if variable.get() is changed[variable]:
                    # A task that is destroyed is closed in the context of other code, and asgiref
                    # gives that what the task had.
                    with suppress(ValueError):
                        variable.reset(token)


_MISSING: Any = object()
