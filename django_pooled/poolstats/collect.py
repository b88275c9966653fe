"""The reading side of publish: ask every process of a user for its pools, in bounded time."""

from __future__ import annotations

import contextlib
import errno
import os
import selectors
import socket
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

from django_pooled.diagnostics.redaction import masked, one_line
from django_pooled.stats import socket_folder
from django_pooled.stats.socket_folder import FolderRefused

from .read_limits import MOST_POOLS, MOST_USERS, Share
from .report_parser import LARGEST_ANSWER, InvalidAnswer, parse_report
from .socket_folders import find_places

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from django_pooled.stats.snapshot import ProcessReport
    from django_pooled.stats.socket_folder import Entry, Peer, StrPath

    from .socket_folders import Place

__all__ = ["Collection", "collect", "collect_all"]

BATCH = 200
"""Processes that are asked at the same time, well below the usual limit of open files."""

MOST_FOLDERS = 500
"""Folders that are open at the same time, those of the lowest users; with the processes that are
asked they stay below the usual limit of open files."""

ROUNDS = 2
"""Times the timeout that all answers may take together, where some come late or never."""

NOT_ASKABLE = (
    "Processes on this platform can't be asked, since it has no Unix sockets: what is known "
    "comes from the server."
)


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
        timeout: Seconds that a process has for its answer; as a rule all are asked at once, and
            where very many are there or do not answer, the look takes twice as long at most.
        uid: The user that runs the site. None is the current one, or for root all of them.
    """
    collection = Collection(askable=socket_folder.available())
    if not collection.askable:
        collection.problems.append(NOT_ASKABLE)
        return collection
    with contextlib.ExitStack() as stack:
        shares = _find(find_places(folders, uid), collection, stack)
        _ask(shares, timeout, collection)
    for share in shares:
        collection.problems += share.problems()
    collection.reports.sort(key=lambda report: report.pid)
    collection.silent.sort()
    return collection


@dataclass
class _Question:
    """What is asked of one process."""

    place: Place
    descriptor: int
    """Of the place's folder."""
    entry: Entry
    answer: bytearray = field(default_factory=bytearray)
    peer: Peer | None = None
    until: float = 0.0
    """The monotonic moment at which it counts as silent."""


class _Open(NamedTuple):
    """A question that is under way."""

    client: socket.socket
    question: _Question
    share: Share


def _find(
    places: Iterable[Place], collection: Collection, stack: contextlib.ExitStack
) -> list[Share]:
    """Open the folders, and share out the sockets in them by user, this one's first."""
    shares: dict[int, Share] = {}
    folders_left = MOST_FOLDERS
    for place in places:
        if not place.elsewhere:
            collection.folders.append(one_line(masked(str(place.path))))
        if place.owner not in shares and len(shares) >= MOST_USERS:
            continue
        share = shares.setdefault(place.owner, Share(place.owner))
        if not folders_left or not share.has_folders_left():
            continue
        try:
            descriptor = socket_folder.open_folder(place.path, place.owner)
        except FileNotFoundError:
            continue
        except OSError as error:
            if not place.elsewhere:
                share.complain(_sentence(place.path, error))
            continue
        stack.callback(os.close, descriptor)
        folders_left -= 1
        try:
            for entry in socket_folder.entries(descriptor):
                if not share.add(_Question(place, descriptor, entry)):
                    break
        except OSError as error:
            share.complain(_sentence(place.path, error))
    return sorted(shares.values(), key=lambda share: (share.owner != os.geteuid(), share.owner))


def _sentence(path: Path, error: OSError) -> str:
    if isinstance(error, FolderRefused):
        return str(error)
    return f"The folder {path} can't be read: {error.strerror}."


def _ask(shares: list[Share], timeout: float, collection: Collection) -> None:
    """Keep as many questions under way as may be, as many of each user as of any other."""
    end = time.monotonic() + ROUNDS * timeout
    with selectors.DefaultSelector() as selector:
        while active := [share for share in shares if share.questions or share.under_way]:
            if time.monotonic() >= end:
                break
            _connect_some(active, timeout, selector, collection)
            under_way: list[_Open] = [key.data for key in selector.get_map().values()]
            if not under_way:
                continue
            # They were asked in this order.
            patience = min(under_way[0].question.until, end) - time.monotonic()
            ready = {key.fd for key, _ in selector.select(max(0.0, patience))}
            for one in under_way:
                if one.client.fileno() in ready and _has_ended(one):
                    _close(one, selector)
                    _take(one, collection)
                elif time.monotonic() >= one.question.until:
                    _close(one, selector)
                    _give_up(one, collection)
        for key in list(selector.get_map().values()):
            _close(key.data, selector)
            _give_up(key.data, collection)
    for share in shares:
        if share.questions:
            many = len(share.questions)
            share.complain(f"{many} sockets of user {share.owner} were not asked in time.")


def _connect_some(
    active: list[Share], timeout: float, selector: selectors.BaseSelector, collection: Collection
) -> None:
    """Ask more processes: as many as there is room for, and of no user more than a fair share."""
    room = BATCH - len(selector.get_map())
    fair = max(1, BATCH // len(active))
    for share in active:
        while share.questions and share.under_way < fair and room > 0:
            question = share.questions.popleft()
            if client := _connect(question, share, collection):
                question.until = time.monotonic() + timeout
                share.under_way += 1
                room -= 1
                selector.register(client, selectors.EVENT_READ, _Open(client, question, share))


def _close(one: _Open, selector: selectors.BaseSelector) -> None:
    selector.unregister(one.client)
    one.client.close()
    one.share.under_way -= 1


def _connect(question: _Question, share: Share, collection: Collection) -> socket.socket | None:
    path, entry = question.place.path / question.entry.name, question.entry
    client: socket.socket | None = None
    try:
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        client.setblocking(False)
        client.connect(socket_folder.reachable(path, question.descriptor))
        question.peer = socket_folder.peer_of(client)
    except OSError as error:
        if client is not None:
            client.close()
        if error.errno == errno.ECONNREFUSED:
            socket_folder.remove(question.descriptor, entry)
        elif error.errno == errno.EAGAIN:
            # Its queue is full of readers that it never answered.
            collection.silent.append(entry.pid)
        elif error.errno != errno.ENOENT:
            reason = error.strerror or error
            share.complain(f"Process {entry.pid} can't be asked: {reason}.")
        return None
    if question.peer is not None and question.peer.uid != question.place.owner:
        client.close()
        share.complain(
            f"The socket {path} is held by user {question.peer.uid} instead of "
            f"{question.place.owner}, so its answer is not trusted."
        )
        return None
    return client


def _has_ended(one: _Open) -> bool:
    """Read what is there; tell whether that was all, or too much for its user's share."""
    before = len(one.question.answer)
    ended = _read(one.client, one.question)
    return not one.share.read(len(one.question.answer) - before) or ended


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


def _give_up(one: _Open, collection: Collection) -> None:
    question = one.question
    peer = question.peer
    if peer is not None and peer.pid and not socket_folder.process_exists(peer.pid):
        # A child that the process left behind still holds its listening socket open.
        socket_folder.remove(question.descriptor, question.entry)
    else:
        collection.silent.append(question.entry.pid)


def _take(one: _Open, collection: Collection) -> None:
    _, question, share = one
    place, entry = question.place, question.entry
    if share.bytes_left < 0 or share.pools_left < 0:
        return  # That was said of all.
    try:
        report = parse_report(bytes(question.answer))
        share.pools_left -= len(report.pools)
        if share.pools_left < 0:
            raise ValueError(f"brings the pools of user {share.owner} to more than {MOST_POOLS}")
    except ValueError as error:
        whole = isinstance(error, InvalidAnswer)
        if not whole and socket_folder.remove_abandoned(place.path, question.descriptor, entry):
            return  # It ended while it answered.
        how = "answered nonsense:" if whole else "gave an answer that"
        share.complain(f"Process {entry.pid} {how} {error}.")
    else:
        # The owner of its socket, whoever it says it is.
        collection.reports.append(replace(report, user=place.owner))
