"""How far an attempt of a transaction got."""

from __future__ import annotations

from enum import Enum

__all__ = ["Phase"]


class Phase(Enum):
    """Every error is judged by it first."""

    BODY = "body"
    """From the checkout on; BEGIN is sent with the first statement."""
    ROLLBACK = "rollback"
    """The body has failed: what goes wrong from here on is not why."""
    COMMIT_SENT = "commit sent"
    COMMITTED = "committed"
    FAILED = "failed"
    """Nothing was committed, nor will be."""
    UNKNOWN = "unknown"
