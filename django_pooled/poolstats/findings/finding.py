"""A sentence about a fault, or a note, with its level."""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from typing import TypeAlias

__all__ = ["Finding", "Kind", "Level"]

Kind: TypeAlias = Literal[
    "away",
    "blocked",
    "broken",
    "budget",
    "churn",
    "connect",
    "failed",
    "forgotten",
    "idle in transaction",
    "more",
    "nothing",
    "others",
    "paused",
    "pooler",
    "pooler full",
    "problem",
    "read only",
    "restarts",
    "room",
    "silent",
    "threshold",
    "unknown commits",
    "unreachable",
    "waiting",
]
"""Subjects of findings. Each has a section in docs/runbook.md; a test compares them."""


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
    kind: Kind | None = None
    """Its subject, in a word that programs can rely on."""
    trouble: str = ""
    """Where to look first: 'application', 'pool' or 'database'; empty where that is unknown."""

    @property
    def code(self) -> str:
        """Return its kind in one word, which is the anchor of its section in the runbook."""
        return (self.kind or "").replace(" ", "-")

    @property
    def told(self) -> str:
        """Return the sentence, followed by the code."""
        return f"{self.sentence} [{self.code}]" if self.kind else self.sentence

    def as_json(self) -> dict[str, str | None]:
        """Return it in plain values."""
        return {
            "level": self.level.name.lower(),
            "kind": self.kind or "",
            "trouble": self.trouble or None,
            "sentence": self.sentence,
        }
