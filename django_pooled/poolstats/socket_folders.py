"""Where the sockets of a user's processes may lie, seen from this process."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from django_pooled.stats import socket_folder

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from django_pooled.stats.socket_folder import StrPath

__all__ = ["Place", "find_places"]

# As os.geteuid() gives it: with zeros before it, one user would have any number of folders.
_FOLDER = re.compile(rf"{socket_folder.PREFIX}(0|[1-9]\d{{0,9}})\Z", re.ASCII)


class Place(NamedTuple):
    """A folder and the user that it has to belong to."""

    path: Path
    owner: int
    elsewhere: bool = False
    """In another process's view of the file system; what is wrong there is not ours to report."""


def find_places(folders: Iterable[StrPath | None], uid: int | None) -> Iterator[Place]:
    """Yield the folders to look into, each once.

    Args:
        folders: ``stats_dir`` options; None stands for the default folder.
        uid: The user that runs the site. None is the current one, or for root all of them.
    """
    own, everyone = (os.geteuid(), os.geteuid() == 0) if uid is None else (uid, False)
    for folder in dict.fromkeys(folders):
        expected = socket_folder.candidates(folder, own)
        yield from (Place(path, own) for path in expected)
        bases = [path.parent for path in expected]
        if everyone:
            yield from (place for place in _in_bases(bases) if place.owner != own)
        if folder is None:
            for place in _in_bases(_other_views(bases)):
                if everyone or place.owner == own:
                    yield place._replace(elsewhere=True)


def _in_bases(bases: Iterable[Path]) -> Iterator[Place]:
    for base in bases:
        try:
            with os.scandir(base) as found:
                matches = [match for entry in found if (match := _FOLDER.match(entry.name))]
        except OSError:
            continue
        for number in sorted(int(match[1]) for match in matches):
            yield Place(base / f"{socket_folder.PREFIX}{number}", number)


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
