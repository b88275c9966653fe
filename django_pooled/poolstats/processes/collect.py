"""Asks every process of a user for its pools, in bounded time."""

from __future__ import annotations

import contextlib
import os
import selectors
import time
from collections import deque
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from django_pooled.diagnostics.redaction import masked, one_line
from django_pooled.stats import answering_socket, socket_folder
from django_pooled.stats.socket_folder import FolderRefused

from .question import Question
from .socket_folders import find_folders
from .user_limits import MOST_USERS, UserLimits

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from django_pooled.poolstats.site import Site
    from django_pooled.stats.snapshot import ProcessReport
    from django_pooled.stats.socket_folder import StrPath

    from .socket_folders import SocketFolder

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
    others: set[int] = field(default_factory=set)
    """Processes that publish pools of other sites only, or of a site's tests, and are left out."""
    problems: list[str] = field(default_factory=list)
    """Sentences about what could not be read."""
    folders: list[str] = field(default_factory=list)
    """Where they were looked for, the missing folders too."""
    askable: bool = True
    """False on a platform on which no process publishes its pools."""

    def updated(self, later: Collection) -> Collection:
        """Return a later look, with the earlier answers of processes that gave it none."""
        answered = {report.pid for report in later.reports} | later.others
        kept = [
            report
            for report in self.reports
            if report.pid in later.silent and report.pid not in answered
        ]
        silent = sorted({*later.silent} - {report.pid for report in kept})
        reports = sorted([*later.reports, *kept], key=lambda report: report.pid)
        return replace(later, reports=reports, silent=silent)


def collect(
    folder: StrPath | None = None, timeout: float = 1.0, *, uid: int | None = None
) -> Collection:
    """Ask every process that publishes its pools in one folder; see :func:`collect_all`."""
    return collect_all([folder], timeout, uid=uid)


def collect_all(
    folders: Iterable[StrPath | None],
    timeout: float = 1.0,
    *,
    uid: int | None = None,
    site: Site | None = None,
    history: bool = False,
    sessions: bool = False,
    order: bytes | None = None,
    only: int | None = None,
) -> Collection:
    """Ask every process that publishes its pools for a report.

    Sockets of dead processes are removed. Faults found in the folders are described in
    ``problems``; none is raised.

    Args:
        folders: ``stats_dir`` options; None stands for the default folder.
        timeout: Seconds that a process has for its answer; as a rule all are asked at once, and
            where very many are there or do not answer, the look takes twice as long at most.
        uid: The user that runs the site. None is the current one, or for root all of them.
        site: The only one whose pools are wanted; None for those of all sites.
        history: Whether the last minutes are wanted too.
        sessions: Whether the processes are to look whose sessions their servers have.
        order: What the processes are to do, in place of a question.
        only: The one process to ask; None for all.
    """
    collection = Collection(askable=socket_folder.available())
    if not collection.askable:
        collection.problems.append(NOT_ASKABLE)
        return collection
    with contextlib.ExitStack() as stack:
        key = site.key if site is not None else ""
        what = answering_socket.HISTORY if history else answering_socket.NOW
        what = answering_socket.SESSIONS if sessions else what
        what = order or what
        users = _find(find_folders(folders, uid), collection, stack, key, what, only)
        _ask(users, timeout, collection)
    for user in users:
        collection.problems += user.limits.problems()
    collection.reports.sort(key=lambda report: report.pid)
    collection.silent.sort()
    if site is not None:
        answered = collection.reports
        collection.reports = site.own(answered)
        own = {report.pid for report in collection.reports}
        collection.others |= {report.pid for report in answered if report.pools} - own
    return collection


@dataclass
class _User:
    limits: UserLimits
    questions: deque[Question] = field(default_factory=deque)
    """The questions that have not been asked."""


def _find(
    folders: Iterable[SocketFolder],
    collection: Collection,
    stack: contextlib.ExitStack,
    site: str,
    what: bytes,
    only: int | None,
) -> list[_User]:
    """Open the folders, and return the questions to ask by user, this one's first.

    Args:
        site: The key of the one to ask, if it is not all of them.
        what: What to ask for.
        only: The one process to ask, if it is not all of them.
    """
    users: dict[int, _User] = {}
    left = MOST_FOLDERS
    for folder in folders:
        if not folder.foreign:
            collection.folders.append(one_line(masked(str(folder.path))))
        if folder.owner not in users and len(users) >= MOST_USERS:
            continue
        user = users.setdefault(folder.owner, _User(UserLimits(folder.owner)))
        if not left or not user.limits.take_folder():
            continue
        try:
            descriptor = socket_folder.open_folder(folder.path, folder.owner)
        except FileNotFoundError:
            continue
        except OSError as error:
            if not folder.foreign:
                user.limits.complain(_sentence(folder.path, error))
            continue
        stack.callback(os.close, descriptor)
        left -= 1
        try:
            for entry in socket_folder.entries(descriptor):
                if only not in (None, entry.pid):
                    continue
                if site and entry.site not in ("", site):
                    if socket_folder.process_exists(entry.pid):
                        collection.others.add(entry.pid)
                elif user.limits.take_socket(entry.identity):
                    user.questions.append(Question(folder, descriptor, entry, user.limits, what))
        except OSError as error:
            user.limits.complain(_sentence(folder.path, error))
    return sorted(users.values(), key=lambda it: (it.limits.owner != os.geteuid(), it.limits.owner))


def _sentence(path: Path, error: OSError) -> str:
    if isinstance(error, FolderRefused):
        return str(error)
    return f"The folder {path} can't be read: {error.strerror}."


def _ask(users: list[_User], timeout: float, collection: Collection) -> None:
    """Keep as many questions under way as may be, as many of each user as of any other."""
    end = time.monotonic() + ROUNDS * timeout
    with selectors.DefaultSelector() as selector:
        while active := [user for user in users if user.questions or user.limits.under_way]:
            if time.monotonic() >= end:
                break
            _ask_more(active, timeout, selector, collection)
            under_way: list[Question] = [key.data for key in selector.get_map().values()]
            if not under_way:
                continue
            # They were asked in this order.
            patience = min(under_way[0].until, end) - time.monotonic()
            ready = {key.data for key, _ in selector.select(max(0.0, patience))}
            for question in under_way:
                if question in ready and question.read():
                    selector.unregister(question.client)
                    question.close()
                    if report := question.report():
                        collection.reports.append(report)
                elif time.monotonic() >= question.until:
                    _give_up(question, selector, collection)
        for key in list(selector.get_map().values()):
            _give_up(key.data, selector, collection)
    for user in users:
        if user.questions and not user.limits.exhausted:
            many, owner = len(user.questions), user.limits.owner
            user.limits.complain(f"{many} sockets of user {owner} were not asked in time.")


def _ask_more(
    active: list[_User], timeout: float, selector: selectors.BaseSelector, collection: Collection
) -> None:
    """Ask as many as there is room for, and of no user more than of any other."""
    room = BATCH - len(selector.get_map())
    most = max(1, BATCH // len(active))
    for user in active:
        if user.limits.exhausted:
            user.questions.clear()
        while user.questions and user.limits.under_way < most and room > 0:
            question = user.questions.popleft()
            if question.ask(timeout):
                room -= 1
                selector.register(question.client, selectors.EVENT_READ, question)
            elif question.silent:
                collection.silent.append(question.pid)


def _give_up(question: Question, selector: selectors.BaseSelector, collection: Collection) -> None:
    selector.unregister(question.client)
    question.give_up()
    if question.silent:
        collection.silent.append(question.pid)
