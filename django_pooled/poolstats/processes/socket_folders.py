"""The folders in which a user's processes may have their sockets, seen from this process."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from django_pooled.stats import socket_folder

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from django_pooled.stats.socket_folder import StrPath

__all__ = ["SocketFolder", "find_folders"]

# As os.geteuid() gives it: with zeros before it, one user would have any number of folders.
_NAME = re.compile(rf"{socket_folder.PREFIX}(0|[1-9]\d{{0,9}})\Z", re.ASCII)


class SocketFolder(NamedTuple):
    """A folder and the user that it has to belong to."""

    path: Path
    owner: int
    foreign: bool = False
    """In another process's view of the file system: faults of it are not ours to report."""


def find_folders(options: Iterable[StrPath | None], uid: int | None) -> Iterator[SocketFolder]:
    """Yield the folders to look into, each once.

    Args:
        options: ``stats_dir`` options; None stands for the default folder.
        uid: The user that runs the site. None is the current one, or for root all of them.
    """
    own, everyone = (os.geteuid(), os.geteuid() == 0) if uid is None else (uid, False)
    for option in dict.fromkeys(options):
        expected = socket_folder.candidates(option, own)
        yield from (SocketFolder(path, own) for path in expected)
        bases = [path.parent for path in expected]
        if everyone:
            yield from (found for found in _in_bases(bases) if found.owner != own)
        if option is None:
            for found in _in_bases(_other_views(bases)):
                if everyone or found.owner == own:
                    yield found._replace(foreign=True)


def _in_bases(bases: Iterable[Path]) -> Iterator[SocketFolder]:
    for base in bases:
        try:
            with os.scandir(base) as found:
                matches = [match for entry in found if (match := _NAME.match(entry.name))]
        except OSError:
            continue
        for number in sorted(int(match[1]) for match in matches):
            yield SocketFolder(base / f"{socket_folder.PREFIX}{number}", number)


def _other_views(bases: list[Path]) -> Iterator[Path]:
    """Yield the same folders as processes with a file system of their own see them.

    systemd's PrivateTmp=, which is in gunicorn's own example of a unit, and containers give
    a process another /tmp than the operator's shell has.
    """
    seen = {key for base in bases if (key := _identity(base))}
    for process in Path("/proc").glob("[0-9]*"):
        for base in bases:
            view = process / "root" / base.relative_to("/")
            if (key := _identity(view)) and key not in seen:
                seen.add(key)
                yield view


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
