"""A sentence about a fault, or a note, with its level."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

__all__ = ["Finding", "Level"]


class Level(IntEnum):
    """How bad it is; the number is the exit code of ``poolstats --check``."""

    FINE = 0
    WARNING = 1
    CRITICAL = 2
    UNKNOWN = 3


class Finding(NamedTuple):
    """A sentence about a fault, or a note."""

    level: Level
    sentence: str
    kind: str = ""
    """Its subject, in a word that programs can rely on."""
    trouble: str = ""
    """Where to look first: 'application', 'pool' or 'database'; empty where that is unknown."""

    def as_json(self) -> dict[str, str | None]:
        """Return it in plain values."""
        return {
            "level": self.level.name.lower(),
            "kind": self.kind,
            "trouble": self.trouble or None,
            "sentence": self.sentence,
        }
