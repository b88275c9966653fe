"""The log record of a view that does not fit its transaction."""

from __future__ import annotations

import logging

from django_pooled.diagnostics.log_fields import event_fields

__all__ = ["Notice"]

logger = logging.getLogger("django_pooled.retry")


class Notice:
    """Tells once, for one view, that it is run in another way.

    Args:
        name: The view's name.
        using: Key of the database.
    """

    def __init__(self, name: str, using: str) -> None:
        self._name = name
        self._using = using
        self._told = False

    def tell(self, reason: str, instead: str = "without restarts") -> None:
        """Log the *reason*, unless one was logged before.

        Args:
            reason: Why it does not fit.
            instead: How it was run.
        """
        if not self._told:
            self._told = True
            logger.warning(
                "%s was run %s: %s", self._name, instead, reason,
                extra=event_fields("left_alone", alias=self._using, function=self._name),
            )  # fmt: skip
