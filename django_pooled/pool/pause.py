"""A pause of a pool: until when its checkouts wait, and who has said so."""

from __future__ import annotations

from time import monotonic
from typing import NamedTuple

__all__ = ["Pause"]


class Pause(NamedTuple):
    """One pause, which ends by itself."""

    until: float
    """The monotonic moment of its end."""
    by: str
    """Who has ordered it."""
    token: str
    """Tells the run of the command that ordered it."""

    @property
    def left(self) -> float:
        """Seconds left."""
        return max(0.0, self.until - monotonic())
