"""Regular expressions that are compiled when they are first used, and not as they are imported."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, AnyStr, cast

if TYPE_CHECKING:
    from re import Pattern

__all__ = ["lazy_pattern"]


def lazy_pattern(pattern: AnyStr, flags: int = 0) -> Pattern[AnyStr]:
    """Return what `re.compile` would: it is called at the first use of the pattern.

    Compiling takes up to a millisecond, and a process may never need most of them.

    Args:
        pattern: The regular expression.
        flags: Those of `re.compile`.
    """
    return cast("Pattern[AnyStr]", _LazyPattern(pattern, flags))


class _LazyPattern:
    def __init__(self, *given: Any) -> None:
        self._given = given

    def __getattr__(self, name: str) -> Any:
        # From then on the attribute is found without this.
        found = self.__dict__[name] = getattr(re.compile(*self._given), name)
        return found
