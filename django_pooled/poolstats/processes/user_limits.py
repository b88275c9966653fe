"""How much of a look one user's processes may take, so that there is room for those of others."""

from __future__ import annotations

from dataclasses import dataclass, field

from django_pooled.diagnostics.redaction import masked, one_line

__all__ = ["MOST_USERS", "UserLimits"]

MOST_USERS = 1000
"""Users whose folders are opened, the lowest numbers first: one user may own the files of
thousands of others, by namespaces."""

MOST_FOLDERS = 200
"""Folders of one user: each container may have one."""

MOST_SOCKETS = 2000
"""Processes of one user that are asked."""

MOST_BYTES = 32 * 1024 * 1024
"""Of all answers of one user; a process with three pools of ten connections answers 15 thousand."""

MOST_POOLS = 5000
"""In all answers of one user."""

MOST_PROBLEMS = 3
"""Sentences about one user."""


@dataclass
class UserLimits:
    """What the processes of one user have taken already."""

    owner: int
    under_way: int = 0
    """Questions that are not answered yet."""
    _folders: int = 0
    _sockets: set[tuple[int, int]] = field(default_factory=set)
    _bytes: int = 0
    _pools: int = 0
    _problems: list[str] = field(default_factory=list)

    @property
    def exhausted(self) -> bool:
        """Whether no more answers are read."""
        return self._bytes > MOST_BYTES or self._pools > MOST_POOLS

    def take_folder(self) -> bool:
        """Count a folder, and tell whether it may be looked into."""
        self._folders += 1
        if self._folders == MOST_FOLDERS + 1:
            self.complain(f"User {self.owner} has more than {MOST_FOLDERS} folders.")
        return self._folders <= MOST_FOLDERS

    def take_socket(self, identity: tuple[int, int]) -> bool:
        """Count a socket, and tell whether it may be asked: not under a second name."""
        if identity in self._sockets:
            return False
        self._sockets.add(identity)
        if len(self._sockets) == MOST_SOCKETS + 1:
            self.complain(
                f"User {self.owner} has more than {MOST_SOCKETS} sockets; the others are not asked."
            )
        return len(self._sockets) <= MOST_SOCKETS

    def take_bytes(self, size: int) -> None:
        """Count some bytes of an answer."""
        had_room = not self.exhausted
        self._bytes += size
        if had_room and self.exhausted:
            self.complain(
                f"The answers of user {self.owner} have more than {MOST_BYTES} bytes together; "
                "the rest is not read."
            )

    def take_pools(self, number: int) -> None:
        """Count the pools of an answer.

        Raises:
            ValueError: They are too many; the message completes "an answer that".
        """
        self._pools += number
        if self.exhausted:
            raise ValueError(f"brings the pools of user {self.owner} to more than {MOST_POOLS}")

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
