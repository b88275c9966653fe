"""The file in which the processes of a site keep their sums, one of them at a time."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import stat
from time import monotonic, sleep, time
from typing import TYPE_CHECKING, Any

from django_pooled.diagnostics.log_fields import event_fields
from django_pooled.diagnostics.redaction import told
from django_pooled.poolstats.processes.report_parser import parse_counters
from django_pooled.stats import answering_socket, socket_folder
from django_pooled.stats.snapshot import BOUNDS, counters_as_json

from .sums import SeenPool, Sums

with contextlib.suppress(ModuleNotFoundError):  # Windows, where stats_folder.require() refuses
    import fcntl

if TYPE_CHECKING:
    from collections.abc import Iterator

    from django_pooled.stats.socket_folder import StrPath

__all__ = ["is_kept", "open_sums"]

logger = logging.getLogger("django_pooled.metrics.ledger")

VERSION = 1
LARGEST = 64 * 1024 * 1024
"""Bytes of a file that is read; one pool takes two thousand."""

KEPT_FOR = 30 * 86400.0
"""Seconds after which a file that no process has written is removed: its site is gone."""

_NAME = re.compile(r"metrics-[0-9a-f]{16}\.(json|lock|new)\Z")
# Opening a pipe in the file's place must not block.
_CAREFULLY = (
    getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
)
_READ = os.O_RDONLY | _CAREFULLY
_WRITE = os.O_WRONLY | os.O_CREAT | _CAREFULLY


def is_kept(folder: StrPath | None, site: str) -> bool:
    """Tell whether the site keeps sums; if not, it is not scraped.

    Args:
        folder: The ``stats_dir`` option, None for the default folder.
        site: A name for the site.

    Raises:
        OSError: The folder can't be used.
    """
    return (answering_socket.default_folder(folder) / f"metrics-{site}.json").exists()


@contextlib.contextmanager
def open_sums(folder: StrPath | None, site: str, patience: float) -> Iterator[Sums]:
    """Read the sums of a site, and write them when the block has ended.

    No other process writes them meanwhile: later looks are written down after earlier ones.
    Where another process holds the file for too long (it may have been stopped), it is only read.

    Args:
        folder: The ``stats_dir`` option, None for the default folder.
        site: A name for the site.
        patience: Seconds to wait for others.

    Raises:
        OSError: It can't be kept there.
    """
    socket_folder.require()
    path = answering_socket.default_folder(folder)
    descriptor = socket_folder.open_folder(path, os.geteuid())
    name = f"metrics-{site}"
    try:
        lock = os.open(f"{name}.lock", _WRITE, 0o600, dir_fd=descriptor)
        try:
            mine = _lock(lock, patience)
            sums = _read(descriptor, f"{name}.json")
            yield sums
            if mine:
                _write(descriptor, name, sums)
        finally:
            # Without this the lock would last as long as a child that was forked meanwhile.
            fcntl.flock(lock, fcntl.LOCK_UN)
            os.close(lock)
    finally:
        os.close(descriptor)


def _lock(lock: int, patience: float) -> bool:
    deadline = monotonic() + patience
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if monotonic() >= deadline:
                logger.debug(
                    "another process holds the ledger of the metrics",
                    extra=event_fields("ledger_held"),
                )
                return False
            sleep(0.01)
        else:
            # So that a sweep takes it for as old as the last look.
            os.utime(lock)
            return True


def _read(descriptor: int, name: str) -> Sums:
    try:
        file = os.open(name, _READ, dir_fd=descriptor)
    except FileNotFoundError:
        _sweep(descriptor)
        return Sums()
    with open(file, "rb") as stream:
        # Anything else could have no end.
        is_file = stat.S_ISREG(os.fstat(file).st_mode)
        content = stream.read(LARGEST + 1) if is_file else b""
    try:
        if len(content) > LARGEST:
            raise ValueError(f"it has more than {LARGEST} bytes")
        return _parse(json.loads(content))
    except (
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        ArithmeticError,
        RecursionError,
    ) as error:
        logger.debug(
            "started a new ledger of the metrics, since the old one cannot be read: %s",
            told(error),
            extra=event_fields("ledger_begun_anew", error=error),
        )
        return Sums()


def _parse(content: Any) -> Sums:
    if content["version"] != VERSION or content["bounds"] != list(BOUNDS):
        raise ValueError("it was written by another version")
    now = time()
    entries = {
        identity: SeenPool(
            alias=str(entry["alias"]),
            host=str(entry["host"]),
            pid=int(entry["pid"]),
            # An entry of the future, after a clock was set, would never be forgotten.
            seen=seen if (seen := float(entry["seen"])) <= now else now,
            counts=parse_counters(entry["counts"], "counts"),
        )
        for identity, entry in content["entries"].items()
    }
    retired = {
        alias: parse_counters(counts, "counts") for alias, counts in content["retired"].items()
    }
    return Sums(entries, retired)


def _write(descriptor: int, name: str, sums: Sums) -> None:
    entries = {
        identity: {**vars(entry), "counts": counters_as_json(entry.counts)}
        for identity, entry in sums.entries.items()
    }
    retired = {alias: counters_as_json(counts) for alias, counts in sums.retired.items()}
    content = {"version": VERSION, "bounds": list(BOUNDS), "entries": entries, "retired": retired}
    file = os.open(f"{name}.new", _WRITE | os.O_TRUNC, 0o600, dir_fd=descriptor)
    with open(file, "w", encoding="utf-8") as stream:
        json.dump(content, stream)
    # In one step: a process that is killed here leaves the old one.
    os.rename(f"{name}.new", f"{name}.json", src_dir_fd=descriptor, dst_dir_fd=descriptor)


def _sweep(descriptor: int) -> None:
    """Remove the files of sites that are gone."""
    for name in filter(_NAME.match, os.listdir(descriptor)):
        with contextlib.suppress(FileNotFoundError):
            if os.stat(name, dir_fd=descriptor).st_mtime < time() - KEPT_FOR:
                os.unlink(name, dir_fd=descriptor)
