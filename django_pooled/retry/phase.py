"""How far an attempt of a transaction got."""

from __future__ import annotations

from enum import Enum

__all__ = ["Phase"]


class Phase(Enum):
    """The phase decides first what an error means."""

    BODY = "body"
    """From the checkout on; BEGIN is sent with the first statement."""
    ROLLBACK = "rollback"
    """The function has failed; errors from here on are not the cause."""
    COMMIT_SENT = "commit sent"
    COMMITTED = "committed"
    FAILED = "failed"
    """Nothing was committed, nor will be."""
    UNKNOWN = "unknown"
