"""What is taken for a number of seconds, wherever one is given."""

from __future__ import annotations

import sys
from math import inf
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import TypeGuard

__all__ = ["is_seconds", "is_time_limit"]


def is_seconds(value: object) -> TypeGuard[float]:
    """Tell whether a value is a number that a clock can be compared with, infinity apart.

    No bool, no NaN, and no whole number that no float can hold.
    """
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and abs(value) <= sys.float_info.max
    )


def is_time_limit(value: object) -> bool:
    """Tell whether a value is seconds above 0, or infinity, which never ends anything."""
    return value == inf or (is_seconds(value) and value > 0)
