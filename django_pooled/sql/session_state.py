"""Kinds of state that a statement may leave in its session, and how hard each is to clear."""

from __future__ import annotations

__all__ = ["ADVISORY_LOCK", "ends_with_session", "graver", "hides_what_it_does", "outlives_discard"]

ADVISORY_LOCK = "ADVISORY LOCK"
"""One that lasts as long as its session, or the release of one."""

_HIDDEN = frozenset({"CALL", "DO", "EXTENSION", "PREPARE", "function", "unknown"})
_GRAVITIES = {"LOAD": 4, "REPLICATION": 4, **dict.fromkeys(_HIDDEN, 3), "DBLINK": 2, "SEED": 2}

_OF_THE_SESSION = frozenset(
    {
        *(ADVISORY_LOCK, "DISCARD", "LISTEN", "LOAD", "ROLE", "SEED", "SEQUENCE", "SET"),
        *("TEMPORARY", "WITH HOLD"),
    }
)


def graver(one: str | None, other: str | None) -> str | None:
    """Return the kind of state that is harder to clear; the first, if neither is."""
    return one if _gravity(one) >= _gravity(other) else other


def hides_what_it_does(state: str) -> bool:
    """Tell whether this kind of state is only a guess: what was run is not in the text."""
    return state in _HIDDEN


def outlives_discard(state: str) -> bool:
    """Tell whether DISCARD ALL may leave something of this kind of state."""
    return _gravity(state) > 1


def _gravity(state: str | None) -> int:
    return 0 if state is None else _GRAVITIES.get(state, 1)


def ends_with_session(state: str) -> bool:
    """Tell whether a statement that leaves this kind of state changes nothing else."""
    return state in _OF_THE_SESSION
