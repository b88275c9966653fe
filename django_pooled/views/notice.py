"""The log record of a view that is run without restarts."""

from __future__ import annotations

import logging

from django_pooled.diagnostics.log_fields import event_fields

__all__ = ["Notice"]

logger = logging.getLogger("django_pooled.retry")


class Notice:
    """Tells once, for one view, that it is left alone.

    Args:
        name: The view's name.
        using: Key of the database.
    """

    def __init__(self, name: str, using: str) -> None:
        self._name = name
        self._using = using
        self._told = False

    def tell(self, reason: str) -> None:
        """Log the *reason*, unless one was logged before."""
        if not self._told:
            self._told = True
            logger.warning(
                "%s was run without restarts: %s", self._name, reason,
                extra=event_fields("left_alone", alias=self._using, function=self._name),
            )  # fmt: skip
