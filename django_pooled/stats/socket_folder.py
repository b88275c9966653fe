"""The private folder in which the processes of one user leave the sockets that answer poolstats."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import socket
import stat
import struct
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from django_pooled.lazy_pattern import lazy_pattern

from .names import SITE_LENGTH
from .trusted_folder import refuse_planted_links

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import TypeAlias

    StrPath: TypeAlias = str | os.PathLike[str]

__all__ = [
    "PREFIX",
    "SUN_PATH_LIMIT",
    "Entry",
    "FolderRefused",
    "Peer",
    "available",
    "candidates",
    "entries",
    "open_folder",
    "peer_of",
    "prepare",
    "process_exists",
    "reachable",
    "remove",
    "remove_abandoned",
    "require",
    "socket_name",
    "this_user",
]

# Neither XDG_RUNTIME_DIR nor TMPDIR: a worker under systemd and an operator's shell differ in
# both. /tmp is first because it is there everywhere; /dev/shm stands in for it in containers
# with a read-only root, and comes second because systemd-logind (RemoveIPC) empties it of a
# regular user's files when that user logs out.
BASES = ("/tmp", "/dev/shm")

PREFIX = "django_pooled-"
"""What the name of a user's folder starts with; his number follows."""

SUN_PATH_LIMIT = 107 if sys.platform == "linux" else 103
"""Longest path in bytes that fits a Unix socket's address."""

MOST_NAMES = 10_000
"""Names in a folder that are looked at: more than there are processes of one user."""

_ENTRY = lazy_pattern(
    rf"(?P<pid>\d{{1,10}})\.[0-9a-f]{{8}}(?:\.(?P<site>[0-9a-f]{{{SITE_LENGTH}}}))?"
    r"\.(?P<state>sock|new)\Z"
)


class FolderRefused(PermissionError):
    """A folder is not private to its user; the message is a sentence that names the reason."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    def __str__(self) -> str:
        return self.message


class Peer(NamedTuple):
    """The process at the other end of a socket."""

    pid: int
    """0 where the process is in a container that this one can't see into."""
    uid: int


class Entry(NamedTuple):
    """A socket in the folder."""

    name: str
    pid: int
    """As its process sees itself, in its own container perhaps."""
    listens: bool
    """False while the process is still setting it up."""
    identity: tuple[int, int] = (0, 0)
    """Device and inode: the same for all names of one socket."""
    site: str = ""
    """Key of the site that the process belongs to; empty where the name does not tell."""


def available() -> bool:
    """Tell whether the platform has Unix sockets, and users whose own a folder can be.

    Windows has neither as far as Python is concerned.
    """
    return hasattr(socket, "AF_UNIX") and hasattr(os, "geteuid")


def this_user() -> int:
    """Return the number of the user that this process runs as; 0 where users have none."""
    return os.geteuid() if hasattr(os, "geteuid") else 0


def require() -> None:
    """Raise OSError where the platform has no such sockets."""
    if not available():
        raise OSError(errno.EAFNOSUPPORT, "the platform has no Unix sockets")


def candidates(folder: StrPath | None, uid: int) -> list[Path]:
    """Return the folders to try for a user's sockets, in order, whether they exist or not.

    They follow from ``folder`` and the user alone, so that every process of one user on a
    host arrives at the same ones.

    Args:
        folder: The ``stats_dir`` option, or None for the default. Each user has a folder of
            his own inside it, so it may itself be shared, a mounted volume for example.
        uid: The user that runs the site.
    """
    bases = BASES if folder is None else (os.path.abspath(folder),)
    return [Path(base, f"{PREFIX}{uid}") for base in bases]


def prepare(path: Path) -> int:
    """Create the folder where it is missing and open it.

    Returns:
        A file descriptor of the folder, which the caller closes.

    Raises:
        FolderRefused: The folder is there, but not private to this process's user.
        NotTrusted: It is missing, and its path leads through a link of another user's.
        OSError: It can't be created or opened.
    """
    if not path.exists():
        refuse_planted_links(path, {0, os.geteuid()})
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700, parents=True)
    return open_folder(path, os.geteuid())


def open_folder(path: Path, uid: int) -> int:
    """Open a folder after making sure that it is a user's own and closed to all others.

    Access goes through the file descriptor: in a shared ``/tmp`` the name may
    be given to something else at any moment.

    Raises:
        FolderRefused: It is a symbolic link, no folder, another user's, or open to others.
        OSError: It is missing or can't be opened.
    """
    # Before opening, because a stranger's folder would only say "permission denied".
    _refuse_unless_private(path, os.lstat(path), uid)
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        _refuse_unless_private(path, os.fstat(descriptor), uid)
    except FolderRefused:
        os.close(descriptor)
        raise
    return descriptor


def _refuse_unless_private(path: Path, found: os.stat_result, uid: int) -> None:
    if stat.S_ISLNK(found.st_mode):
        raise FolderRefused(f"The folder {path} is a symbolic link, so it is not trusted.")
    if not stat.S_ISDIR(found.st_mode):
        raise FolderRefused(f"{path} is not a folder.")
    if found.st_uid != uid:
        raise FolderRefused(
            f"The folder {path} belongs to user {found.st_uid} instead of {uid}, "
            "so it is not trusted."
        )
    if mode := stat.S_IMODE(found.st_mode) & 0o077:
        raise FolderRefused(
            f"The folder {path} is open to other users (mode {mode | 0o700:04o}, not 0700), "
            "so it is not trusted."
        )


def reachable(path: Path, descriptor: int) -> str:
    """Return a path for connect(), which takes no file descriptor of a folder.

    On Linux it leads through the descriptor, so that no other folder can be put in the place
    of the one that was opened.

    Args:
        path: In the folder that is open.
        descriptor: Of that folder.
    """
    through = f"/proc/self/fd/{descriptor}"
    return f"{through}/{path.name}" if os.path.isdir(through) else os.fspath(path)


def socket_name(pid: int, site: str = "") -> str:
    """Return a new name for the socket of a process, and of a site if it has a key.

    The random part keeps a process apart from a dead one whose pid it was given, and from
    one in another container with which it shares the folder.
    """
    return f"{pid}.{os.urandom(4).hex()}{site and f'.{site}'}.sock"


def entries(descriptor: int) -> Iterator[Entry]:
    """Yield the sockets in an open folder, and nothing else that may lie there.

    Of a folder with more than ``MOST_NAMES`` names it looks at so many.
    """
    with os.scandir(descriptor) as found_names:
        names = sorted(entry.name for entry in itertools.islice(found_names, MOST_NAMES))
    for name in names:
        if (match := _ENTRY.match(name)) is None:
            continue
        try:
            found = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
        except FileNotFoundError:
            continue
        listens = match["state"] == "sock"
        # One that does not listen refuses readers as a dead one does: give it time.
        if stat.S_ISSOCK(found.st_mode) and (listens or found.st_mtime < time.time() - 60.0):
            identity = (found.st_dev, found.st_ino)
            yield Entry(name, int(match["pid"]), listens, identity, match["site"] or "")


def remove_abandoned(path: Path, descriptor: int, entry: Entry) -> bool:
    """Remove a socket on which no process listens any more, even if its pid is in use again.

    Returns:
        Whether the socket is gone.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.setblocking(False)
        try:
            client.connect(reachable(path / entry.name, descriptor))
        except FileNotFoundError:
            return True
        except ConnectionRefusedError:
            remove(descriptor, entry)
            return True
        except OSError:
            return False
    return False


def remove(descriptor: int, entry: Entry) -> None:
    """Remove a socket from an open folder."""
    # On a read-only file system it stays; a process of the same user may have been faster.
    with contextlib.suppress(OSError):
        os.unlink(entry.name, dir_fd=descriptor)


def process_exists(pid: int) -> bool:
    """Tell whether some process, perhaps another user's, has this pid now."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def peer_of(connection: socket.socket) -> Peer | None:
    """Return the process at the other end, None where the platform does not tell."""
    if sys.platform != "linux":
        return None
    # struct ucred, unix(7): for the side that connected it names the process that listens.
    size = struct.calcsize("iII")
    pid, uid, _ = struct.unpack(
        "iII", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    )
    return Peer(pid, uid)
