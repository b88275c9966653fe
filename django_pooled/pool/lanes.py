"""The lanes of a pool: the kinds of work that it tells apart, and the limits of each."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from .queue_delay import QueueDelay

__all__ = ["LANES", "Lane", "LaneOptions"]

LANES: Final = ("probe", "admin", "web", "task")
"""In the order of their priority."""


class LaneOptions(NamedTuple):
    """What the option ``lanes`` says of one lane."""

    reserved: int = 0
    """Connections that no other lane may take."""
    max: int | None = None
    """Most connections that it may have in use; None for those that the others leave."""
    queue_target: float | None = None
    """The bound on its delay, in seconds; None for no bound."""


@dataclass(frozen=True, eq=False)
class Lane:
    """One lane of one pool."""

    name: str
    rank: int
    """Its place in the order of priority; 0 is the first."""
    reserved: int = 0
    max: float = inf
    delay: QueueDelay | None = None
