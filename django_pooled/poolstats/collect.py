"""The reading side of publish: ask every process of a user for its pools, in bounded time."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import selectors
import socket
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from django_pooled import stats_folder
from django_pooled.stats import REPORT_VERSION
from django_pooled.stats_folder import FolderRefused

from .places import find_places

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from django_pooled.stats import ProcessReport
    from django_pooled.stats_folder import Entry, Peer, StrPath

    from .places import Place

__all__ = ["Collection", "collect", "collect_all", "parse_report"]

BATCH = 200
"""Processes that are asked at the same time, well below the usual limit of open files."""

LARGEST_ANSWER = 4 * 1024 * 1024
"""Bytes; a longer answer is not one of ours."""

NOT_ASKABLE = (
    "Processes on this platform can't be asked, since it has no Unix sockets: what is known "
    "comes from the server."
)

_GAUGES = ("size", "idle", "in_use", "waiting", "max_size")


@dataclass
class Collection:
    """What the processes on this host answered."""

    reports: list[ProcessReport] = field(default_factory=list)
    """One for each process, by pid."""
    silent: list[int] = field(default_factory=list)
    """Processes that are alive and did not answer in time: stopped, or too busy."""
    problems: list[str] = field(default_factory=list)
    """Sentences about what could not be read."""
    folders: list[str] = field(default_factory=list)
    """Where they were looked for, the missing folders too."""
    askable: bool = True
    """False on a platform on which no process publishes its pools."""


def collect(
    folder: StrPath | None = None, timeout: float = 1.0, *, uid: int | None = None
) -> Collection:
    """Ask every process that publishes its pools in one folder; see :func:`collect_all`."""
    return collect_all([folder], timeout, uid=uid)


def collect_all(
    folders: Iterable[StrPath | None], timeout: float = 1.0, *, uid: int | None = None
) -> Collection:
    """Ask every process that publishes its pools for a report.

    What dead processes left behind is removed. Nothing is raised for what is found in the
    folders: it is described in ``problems``.

    Args:
        folders: ``stats_dir`` options; None stands for the default folder.
        timeout: Seconds that a process has for its answer; all are asked at once.
        uid: The user that runs the site. None is the current one, or for root all of them.
    """
    collection = Collection(askable=stats_folder.available())
    if not collection.askable:
        collection.problems.append(NOT_ASKABLE)
        return collection
    with contextlib.ExitStack() as stack:
        questions: list[_Question] = []
        for place in find_places(folders, uid):
            if not place.elsewhere:
                collection.folders.append(str(place.path))
            try:
                descriptor = stats_folder.open_folder(place.path, place.owner)
                stack.callback(os.close, descriptor)
                entries = stats_folder.entries(descriptor)
                questions += [_Question(place, descriptor, entry) for entry in entries]
            except FileNotFoundError:
                continue
            except OSError as error:
                if not place.elsewhere:
                    collection.problems.append(_sentence(place.path, error))
        for first in range(0, len(questions), BATCH):
            _ask(questions[first : first + BATCH], timeout, collection)
    collection.reports.sort(key=lambda report: report["pid"])
    collection.silent.sort()
    return collection


def _sentence(path: Path, error: OSError) -> str:
    if isinstance(error, FolderRefused):
        return str(error)
    return f"The folder {path} can't be read: {error.strerror}."


@dataclass
class _Question:
    place: Place
    descriptor: int
    entry: Entry
    answer: bytearray = field(default_factory=bytearray)
    peer: Peer | None = None


def _ask(questions: list[_Question], timeout: float, collection: Collection) -> None:
    """Connect to all, then read whichever has something to say until the time is over."""
    deadline = time.monotonic() + timeout
    with selectors.DefaultSelector() as selector:
        for question in questions:
            if client := _connect(question, collection):
                selector.register(client, selectors.EVENT_READ, (client, question))
        while selector.get_map() and (left := deadline - time.monotonic()) > 0:
            for key, _ in selector.select(left):
                client, question = key.data
                if _read(client, question):
                    selector.unregister(client)
                    client.close()
                    _take(question, collection)
        for key in list(selector.get_map().values()):
            client, question = key.data
            client.close()
            _give_up(question, collection)


def _connect(question: _Question, collection: Collection) -> socket.socket | None:
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    client.setblocking(False)
    path, entry = question.place.path / question.entry.name, question.entry
    try:
        client.connect(os.fspath(path))
        question.peer = stats_folder.peer_of(client)
    except OSError as error:
        client.close()
        if error.errno == errno.ECONNREFUSED:
            stats_folder.remove(question.descriptor, entry)
        elif error.errno == errno.EAGAIN:
            # Its queue is full of readers that it never answered.
            collection.silent.append(entry.pid)
        elif error.errno != errno.ENOENT:
            reason = error.strerror or error
            collection.problems.append(f"Process {entry.pid} can't be asked: {reason}.")
        return None
    if question.peer is not None and question.peer.uid != question.place.owner:
        client.close()
        collection.problems.append(
            f"The socket {path} is held by user {question.peer.uid} instead of "
            f"{question.place.owner}, so its answer is not trusted."
        )
        return None
    return client


def _read(client: socket.socket, question: _Question) -> bool:
    """Read what is there; tell whether that was all."""
    try:
        data = client.recv(65536)
    except (BlockingIOError, InterruptedError):
        return False
    except OSError:
        data = b""
    question.answer += data
    return not data or len(question.answer) > LARGEST_ANSWER


def _give_up(question: _Question, collection: Collection) -> None:
    peer = question.peer
    if peer is not None and peer.pid and not stats_folder.process_exists(peer.pid):
        # A child that the process left behind still holds its listening socket open.
        stats_folder.remove(question.descriptor, question.entry)
    else:
        collection.silent.append(question.entry.pid)


def _take(question: _Question, collection: Collection) -> None:
    place, entry = question.place, question.entry
    try:
        collection.reports.append(parse_report(bytes(question.answer)))
    except ValueError as error:
        if stats_folder.remove_abandoned(place.path, question.descriptor, entry):
            return  # It ended while it answered.
        collection.problems.append(f"Process {entry.pid} gave an answer that {error}.")


def parse_report(answer: bytes) -> ProcessReport:
    """Check one process's answer and return it.

    Raises:
        ValueError: It is not a report; the message completes "an answer that".
    """
    if not answer:
        raise ValueError("is empty")
    if len(answer) > LARGEST_ANSWER:
        raise ValueError(f"is longer than {LARGEST_ANSWER} bytes")
    try:
        report = json.loads(answer)
    except (ValueError, RecursionError):
        raise ValueError("is not whole or not JSON") from None
    if isinstance(report, dict) and isinstance(report.get("error"), str):
        raise ValueError(f"only says that it failed ({report['error']})")
    if not isinstance(report, dict) or not isinstance(report.get("version"), int):
        raise ValueError("is not a report of pools")
    if report["version"] > REPORT_VERSION:
        raise ValueError(
            f"is in format {report['version']}, newer than this command's {REPORT_VERSION}"
        )
    if not _is_whole(report):
        raise ValueError("lacks figures that every report has")
    return report  # type: ignore[return-value]


def _is_whole(report: dict[str, Any]) -> bool:
    pools = report.get("pools")
    return (
        isinstance(report.get("pid"), int)
        and isinstance(report.get("command"), str)
        and isinstance(pools, list)
        and all(
            isinstance(pool, dict)
            and isinstance(pool.get("alias"), str)
            and all(isinstance(pool.get(gauge), int) for gauge in _GAUGES)
            for pool in pools
        )
    )
