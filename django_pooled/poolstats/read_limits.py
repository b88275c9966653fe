"""What one user's processes may take of a look, so that there is room for the others' answers."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from django_pooled.diagnostics.redaction import masked, one_line

if TYPE_CHECKING:
    from .collect import _Question

__all__ = ["MOST_USERS", "Share"]

MOST_USERS = 1000
"""Users whose folders are opened, those with the lowest numbers: a user may have thousands of
others at hand, in namespaces of his own."""

MOST_FOLDERS = 200
"""Folders of one user: each container may have one."""

MOST_SOCKETS = 2000
"""Processes of one user that are asked."""

MOST_BYTES = 32 * 1024 * 1024
"""Of all answers of one user; a process with three pools of ten connections answers 15 thousand."""

MOST_POOLS = 5000
"""In all answers of one user: what is made of them takes its time too."""

MOST_PROBLEMS = 3
"""Sentences about one user."""


@dataclass
class Share:
    """What is to be asked of one user's processes, and what that has taken already."""

    owner: int
    questions: deque[_Question] = field(default_factory=deque)
    """Those that have not been asked."""
    under_way: int = 0
    """Those that have been asked, and not answered."""
    bytes_left: int = MOST_BYTES
    pools_left: int = MOST_POOLS
    _folders: int = 0
    _sockets: set[tuple[int, int]] = field(default_factory=set)
    _problems: list[str] = field(default_factory=list)

    def has_folders_left(self) -> bool:
        """Count a folder, and tell whether it may be looked into."""
        self._folders += 1
        if self._folders == MOST_FOLDERS + 1:
            self.complain(f"User {self.owner} has more than {MOST_FOLDERS} folders.")
        return self._folders <= MOST_FOLDERS

    def add(self, question: _Question) -> bool:
        """Take a question, unless it is about a socket that has another name too.

        Returns:
            False if there are too many.
        """
        identity = question.entry.identity
        if identity in self._sockets:
            return True
        if len(self._sockets) >= MOST_SOCKETS:
            self.complain(
                f"User {self.owner} has more than {MOST_SOCKETS} sockets; the others are not asked."
            )
            return False
        if any(identity):
            self._sockets.add(identity)
        self.questions.append(question)
        return True

    def read(self, size: int) -> bool:
        """Count some bytes of an answer, and tell whether they are not too many."""
        had_some, self.bytes_left = self.bytes_left >= 0, self.bytes_left - size
        if self.bytes_left < 0 and had_some:
            self.questions.clear()
            self.complain(
                f"The answers of user {self.owner} have more than {MOST_BYTES} bytes together; "
                "the rest is not read."
            )
        return self.bytes_left >= 0

    def complain(self, problem: str) -> None:
        """Note a sentence about what can't be read."""
        self._problems.append(one_line(masked(problem)))

    def problems(self) -> list[str]:
        """Return what there is to say, in a few sentences."""
        # In an order that is the same at the next look.
        told, more = sorted(self._problems)[:MOST_PROBLEMS], len(self._problems) - MOST_PROBLEMS
        if more > 0:
            told.append(f"{more} more of the kind about user {self.owner}.")
        return told
