"""The pause of a site's pools, left beside the sockets for processes that start meanwhile."""

from __future__ import annotations

import contextlib
import os
import re
import time
from typing import TYPE_CHECKING

from django_pooled.lazy_pattern import lazy_pattern

from . import socket_folder
from .orders import LONGEST_ORDER, Order, OrderRefused, parse_order

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["find", "leave", "remove"]

_SITE = lazy_pattern(r"[0-9a-f]*\Z", re.ASCII)


def leave(folder: Path, order: Order, by: str) -> None:
    """Leave a pause for processes that start before it ends, in place of the last one.

    Args:
        folder: That of the sockets: nobody but its user can write there.
        order: The pause.
        by: Who has ordered it.

    Raises:
        OSError: It can't be written.
    """
    if not _SITE.match(order.site):
        return
    text = f"{time.time() + order.seconds!r}\n{by}\n".encode() + order.encoded()
    with _opened(folder) as descriptor:
        unfinished = f"{os.getpid()}.{os.urandom(4).hex()}.pause-new"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(unfinished, flags, 0o600, dir_fd=descriptor), "wb") as file:
            file.write(text)
        os.rename(unfinished, _name(order.site), src_dir_fd=descriptor, dst_dir_fd=descriptor)


def find(folder: Path, site: str) -> tuple[Order, str] | None:
    """Return the pause of a site, for as long as it lasts still, and who has ordered it.

    Raises:
        OSError: The folder can't be read.
    """
    with _opened(folder) as descriptor:
        try:
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
            file = os.open(_name(site), flags, dir_fd=descriptor)
        except FileNotFoundError:
            return None
        with open(file, "rb") as found:
            until, by, line = [*found.read(LONGEST_ORDER).split(b"\n", 2), b"", b""][:3]
        try:
            left, order = float(until) - time.time(), parse_order(line)
        except (ValueError, OrderRefused):
            return None
        if left <= 0.0:
            with contextlib.suppress(OSError):
                os.unlink(_name(site), dir_fd=descriptor)
            return None
    # However the clock was set meanwhile.
    pause = order._replace(seconds=min(left, order.seconds), renews=False)
    return pause, by.decode(errors="replace")


def remove(folder: Path, site: str, token: str = "") -> None:
    """Take the pause of a site away.

    Args:
        folder: That of the sockets.
        site: Key of the site.
        token: The run of the command whose pause it has to be; empty for any.

    Raises:
        OSError: It can't be removed.
    """
    if token and (found := find(folder, site)) is not None and found[0].token != token:
        return
    with _opened(folder) as descriptor, contextlib.suppress(FileNotFoundError):
        os.unlink(_name(site), dir_fd=descriptor)


@contextlib.contextmanager
def _opened(folder: Path) -> Iterator[int]:
    descriptor = socket_folder.open_folder(folder, os.geteuid())
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _name(site: str) -> str:
    return f"{site or 'site'}.pause"
