"""Folders whose path no other user can change, by a link or a folder."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

__all__ = ["NotTrusted", "make_folder", "refuse_planted_links"]

MOST_LINKS = 40
"""As many as the kernel follows."""

# Enough to go on from there, even if the folder may not be listed.
_OPEN = getattr(os, "O_PATH", os.O_RDONLY) | getattr(os, "O_CLOEXEC", 0)
_FOLDER = _OPEN | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_NOFOLLOW", 0)


class NotTrusted(PermissionError):
    """Another user could replace a folder of the path; the message says where."""

    def __init__(self, message: str) -> None:
        super().__init__(errno.EPERM, message)

    def __str__(self) -> str:
        return str(self.strerror)


def make_folder(path: Path, trusted: Collection[int], mode: int, *, missing: bool = True) -> None:
    """Make a folder, and those above it that are missing, after a look at the whole way to it.

    It goes down from folder to folder, through open ones, so that nothing can be exchanged behind
    its back. Once it has returned, the path can be used: only the trusted users can change it.

    Args:
        path: Of the folder.
        trusted: The users to whom the folders and links on the way may belong. Others may write
            in none of them, but in one that is sticky, as ``/tmp``.
        mode: Of the folders that are made.
        missing: Whether to make what is missing.

    Raises:
        NotTrusted: Another user can change the path; the message says where.
        OSError: A folder can't be made, or is missing.
    """
    if sys.platform != "win32":
        _walk(path, trusted, mode if missing else None, links_alone=False)


def refuse_planted_links(path: Path, trusted: Collection[int]) -> None:
    """Refuse a path that leads through another user's link, as far as it is there.

    Args:
        path: Of a folder.
        trusted: The users whose links are followed.

    Raises:
        NotTrusted: There is such a link.
    """
    if sys.platform != "win32":
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            _walk(path, trusted, None, links_alone=True)


def _walk(path: Path, trusted: Collection[int], mode: int | None, *, links_alone: bool) -> None:
    todo, links = list(Path(os.path.abspath(path)).parts), 0
    here, where = -1, Path()
    try:
        while todo:
            name = todo.pop(0)
            if name == os.sep:
                here, where = _replaced(here, os.open(name, _FOLDER)), Path(name)
            else:
                found = _look(here, name, mode)
                if stat.S_ISLNK(found.st_mode):
                    if found.st_uid not in trusted:
                        raise NotTrusted(
                            f"{where / name} is a symbolic link of user {found.st_uid}, so it is "
                            "not followed"
                        )
                    links += 1
                    if links > MOST_LINKS:
                        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
                    todo[:0] = Path(os.readlink(name, dir_fd=here)).parts
                    continue
                here, where = _replaced(here, os.open(name, _FOLDER, dir_fd=here)), where / name
            if not links_alone:
                _refuse_others(where, os.fstat(here), trusted)
    finally:
        if here >= 0:
            os.close(here)


def _replaced(old: int, new: int) -> int:
    if old >= 0:
        os.close(old)
    return new


def _look(here: int, name: str, mode: int | None) -> os.stat_result:
    try:
        return os.stat(name, dir_fd=here, follow_symlinks=False)
    except FileNotFoundError:
        if mode is None:
            raise
    # Another process may have been faster: the folder is then checked like the others.
    with contextlib.suppress(FileExistsError):
        os.mkdir(name, 0o700, dir_fd=here)
        # mkdir() applies the umask.
        os.chmod(name, mode, dir_fd=here)
    return os.stat(name, dir_fd=here, follow_symlinks=False)


def _refuse_others(where: Path, found: os.stat_result, trusted: Collection[int]) -> None:
    if found.st_uid not in trusted:
        users = " or ".join(map(str, sorted(trusted)))
        raise NotTrusted(
            f"{where} belongs to user {found.st_uid}, not to user {users}, so it is not trusted"
        )
    others = found.st_mode & stat.S_IWOTH or (
        found.st_mode & stat.S_IWGRP and found.st_gid not in _own_groups(found.st_uid)
    )
    if others and not found.st_mode & stat.S_ISVTX:
        raise NotTrusted(
            f"{where} can be written by other users (mode {stat.S_IMODE(found.st_mode):04o}) and "
            "is not sticky, so it is not trusted"
        )


def _own_groups(user: int) -> set[int]:
    """Return the groups that are as good as the user: on many systems each has one of his own."""
    import pwd

    try:
        return {0, pwd.getpwuid(user).pw_gid}
    except KeyError:
        return {0}
