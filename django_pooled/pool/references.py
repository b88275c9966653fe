"""Whether a variable is the only reference to an object."""

from __future__ import annotations

import sys

__all__ = ["ALONE", "references_to"]


def _cannot_tell(_: object) -> int:
    return -1


references_to = getattr(sys, "getrefcount", _cannot_tell)
"""Counts the references to an object: to compare with `ALONE`, where a local variable is the one
that its caller knows of."""

# Without its global lock, Python's counts are not exact while other threads run.
if not getattr(sys, "_is_gil_enabled", lambda: True)():
    references_to = _cannot_tell


def _of_one_variable() -> int:
    # Python 3.14 lends a variable's reference to some calls, and takes one more for others, as its
    # compiler sees fit for the function. What comes out of a tuple is always one more.
    variable = object()
    return int(references_to((variable,)[0]))


ALONE = _of_one_variable() if references_to is not _cannot_tell else 0
"""What `references_to` tells of an object that only the variable given to it refers to."""
