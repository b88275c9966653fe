"""The reason why a function cannot be run again."""

from __future__ import annotations

from django_pooled.diagnostics.redaction import masked, one_line

__all__ = ["CannotReplay"]


class CannotReplay(Exception):
    """The inputs of a function are no longer what its first attempt saw.

    Args:
        reason: The end of a sentence in the log.
    """

    def __init__(self, reason: str) -> None:
        # It may quote values of a request.
        self.reason = one_line(masked(reason))
        super().__init__(self.reason)
