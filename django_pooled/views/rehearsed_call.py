"""A call that is made once, with a report of what other attempts would repeat."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from django.db import connections

from django_pooled.backend.wrapper import DatabaseWrapper
from django_pooled.diagnostics.log_fields import event_fields
from django_pooled.diagnostics.redaction import one_line
from django_pooled.replay.responses import renders_apart
from django_pooled.retry.attempt import Attempt
from django_pooled.retry.decorator import retry_transaction

from .side_effects import recording

if TYPE_CHECKING:
    from collections.abc import Callable

    from django_pooled.retry.policy import TransactionOptions

__all__ = ["RehearsedCall"]

logger = logging.getLogger("django_pooled.retry")

_MOST_TOLD = 100
"""Different effects of one view that are logged; what they name may differ in each request."""


class RehearsedCall:
    """Calls a view, or the rendering of its response, once, in a transaction as of an attempt.

    What is done by ``on_commit`` callbacks does not count: they run once in any case.

    Args:
        function: What is called.
        name: The view's module and name.
        options: Of its transactions.
    """

    def __init__(
        self, function: Callable[..., Any], name: tuple[str, str], options: TransactionOptions
    ) -> None:
        self._name = ".".join(name)
        self._using = options.get("using", "default")
        self._meant_to_read = options.get("read_only") is True
        self._told: set[str] = set()

        def attempt(*args: Any, **kwargs: Any) -> Any:
            with recording() as effects:
                try:
                    return function(*args, **kwargs)
                finally:
                    self._tell([*effects, *self._writes()])

        attempt.__module__, attempt.__qualname__ = name
        renders_apart(attempt)
        once: TransactionOptions = {**options, "max_attempts": 1, "read_only": None}
        self._called = retry_transaction(**once)(attempt)

    def __call__(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], otherwise: Callable[[], Any]
    ) -> Any:
        """Make the call, as `RestartedCall` does; *otherwise* is not used."""
        return self._called(*args, **kwargs)

    def _writes(self) -> list[str]:
        """Return what it does in the database that does not fit its transaction."""
        wrapper = connections[self._using]
        if not isinstance(wrapper, DatabaseWrapper) or not isinstance(wrapper.attempt, Attempt):
            return []
        watch, found = wrapper.attempt.watch, []
        if self._meant_to_read and wrapper.attempt.has_written:
            found.append("may write to the database, in a request that should only read")
        if watch is not None and watch.took_session_lock:
            found.append("uses a session advisory lock")
        return found

    def _tell(self, effects: list[str]) -> None:
        new = [each for each in effects if each not in self._told]
        if new and len(self._told) < _MOST_TOLD:
            self._told.update(new)
            logger.warning(
                "%s does in each attempt: %s", self._name, one_line("; ".join(new)),
                extra=event_fields("would_repeat", alias=self._using, function=self._name),
            )  # fmt: skip
