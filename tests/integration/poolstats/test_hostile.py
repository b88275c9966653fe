"""Users that put junk where poolstats looks: it costs a bounded time, and the others are shown."""

from __future__ import annotations

import io
import os
import sys
from time import monotonic
from typing import TYPE_CHECKING, Any

import pytest
from django.core.management import call_command
from django.db import connections

from django_pooled.backend.parameters import server_of
from django_pooled.backend.site import this_site
from django_pooled.dashboard.watch import Watch
from django_pooled.poolstats.findings import overview_findings as findings
from django_pooled.poolstats.processes import user_limits
from django_pooled.poolstats.processes.collect import collect, collect_all
from django_pooled.poolstats.processes.socket_folders import find_folders
from django_pooled.poolstats.processes.user_limits import UserLimits
from django_pooled.poolstats.prometheus import as_text, of_overview
from django_pooled.stats import socket_folder
from tests.support.hostile_process import Hostile
from tests.support.publisher import Publisher
from tests.support.reports import overview, pool, process
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no Unix sockets")

as_root = pytest.mark.skipif(
    sys.platform == "win32" or os.geteuid() != 0, reason="only root can act as another user"
)
STRANGER = 4711
OWN = os.geteuid() if sys.platform != "win32" else 0


@pytest.fixture
def genuine(public_folder: Path) -> Iterator[Publisher]:
    """A process whose answer counts."""
    made = Publisher(public_folder, {"in_use": 3})
    yield made
    made.close()


JUNK = {
    "links to one silent socket": """
kept.append(listener(1))
for number in range(2, 3000):
    os.link(f"{folder}/1.00000001.sock", f"{folder}/{number}.{number:08x}.sock")
""",
    "sockets that accept and never answer": """
for number in range(1, 260):
    answering(number, hold)
""",
    "sockets that nobody serves": "kept += [listener(number) for number in range(1, 400)]",
    "a byte now and then": "for number in range(1, 40): answering(number, trickle)",
    "answers without end": """
for number in range(1, 40):
    answering(number, lambda client: [client.sendall(b"[" * 1_000_000) for _ in range(1000)])
""",
    "deep nesting": """
for number in range(1, 20):
    answering(number, lambda client: client.sendall(b"[" * 4_000_000))
""",
    "numbers of all kinds": """
for number, odd in enumerate([10**400, -1, True, 1e308, float("nan"), float("inf"), "1", [], {}]):
    answering(number + 1, say(waiting=odd))
""",
    "texts of all kinds": r"""
for number, odd in enumerate(["\\ud800", "\\x1b[2J\\x1b[31m", "\\u202e", "=cmd()", "x" * 100_000]):
    answering(number + 1, say(server=odd, name=odd, last_error=odd, closed={odd: 1}))
""",
    "thousands of pools": """
many = json.dumps([{"alias": str(n), "size": 0, "idle": 0, "in_use": 0, "waiting": 0, "max_size": 1}
                   for n in range(9000)])
for number in range(1, 20):
    answering(number, lambda client: client.sendall(
        f'{{"version": 1, "pid": 1, "command": "x", "pools": {many}}}'.encode()))
""",
}
WAYS: list[list[str]] = [
    *([], ["--connections"], ["--processes"], ["--check"], ["--connections", "--processes"]),
    *(["--format=json"], ["--format=prometheus"], ["--over=0.1"]),
]


@as_root
@pytest.mark.parametrize("junk", JUNK)
def test_a_stranger_s_junk_leaves_the_answers_of_others(
    public_folder: Path, genuine: Publisher, junk: str
) -> None:
    other = Publisher(public_folder, uid=STRANGER + 1)
    try:
        with Hostile(public_folder, JUNK[junk], STRANGER):
            started = monotonic()
            found = collect_all([public_folder], timeout=1.0)
            took = monotonic() - started
    finally:
        other.close()
    mine = {report.pid: report.user for report in found.reports if report.pid != 1}
    assert mine == {genuine.pid: 0, other.pid: STRANGER + 1}
    assert len(found.problems) <= 2 * user_limits.MOST_PROBLEMS
    # Two seconds, and what a busy machine adds.
    assert took < 15.0


@as_root
@pytest.mark.django_db
@pytest.mark.parametrize("way", WAYS, ids=" ".join)
def test_every_way_of_output_shows_the_rest_and_says_what_is_wrong(
    public_folder: Path, genuine: Publisher, way: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    program = JUNK["numbers of all kinds"] + JUNK["texts of all kinds"].replace(
        "number + 1", "number + 100"
    )
    output = io.StringIO()
    with Hostile(public_folder, program, STRANGER):
        try:
            call_command("poolstats", "--all", *way, stats_dir=str(public_folder), stdout=output)
        except SystemExit:
            assert "--check" in way
    text = output.getvalue()
    text.encode()
    assert all(line.isprintable() for line in text.splitlines())
    if way == ["--format=prometheus"]:
        assert str(genuine.pid) in text
    else:
        assert (
            "answered nonsense: pools[0].waiting is not a whole number between 0 and 2^53" in text
        )
        assert "3" in text


@pytest.mark.parametrize("junk", ["numbers of all kinds", "a byte now and then"])
def test_junk_of_the_own_user_leaves_its_other_processes(
    public_folder: Path, genuine: Publisher, junk: str
) -> None:
    with Hostile(public_folder, JUNK[junk], OWN):
        found = collect(public_folder, timeout=1.0)
    assert genuine.pid in [report.pid for report in found.reports]
    if junk == "a byte now and then":
        assert len(found.silent) == 39
    else:
        assert len(found.problems) == user_limits.MOST_PROBLEMS + 1
        assert found.problems[-1].endswith(f"more of the kind about user {OWN}.")


@as_root
def test_what_another_user_says_is_no_part_of_the_own_sums(
    public_folder: Path, genuine: Publisher
) -> None:
    # It names the same alias and server, and the number of the genuine process.
    program = f"""
answering({genuine.pid}, lambda client: client.sendall(json.dumps({{
    "version": 1, "pid": {genuine.pid}, "command": "x", "user": 0,
    "pools": [{{"alias": "default", "server": {pool()["server"]!r}, "size": 100, "idle": 0,
               "in_use": 100, "waiting": 1000, "max_size": 100}}]}}).encode()))
"""
    with Hostile(public_folder, program, STRANGER):
        found = collect_all([public_folder], timeout=2.0)
    look = overview(*found.reports)
    assert [(group.user, group.sum("waiting")) for group in look.groups] == [
        (None, 0),
        (STRANGER, 1000),
    ]
    assert [group.name for group in look.groups] == [
        "default",
        f"default of user {STRANGER}",
    ]
    text = as_text(of_overview(look))
    assert (
        f'django_pooled_pool_waiting{{database="default",pid="{genuine.pid}",'
        f'server="{pool()["server"]}"}} 0' in text
    )


@as_root
@pytest.mark.django_db
def test_the_page_of_a_site_that_runs_as_root_has_root_s_processes_alone(
    public_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = {"server": server_of(connections.settings["default"]), "site": this_site().key}
    root, other = Publisher(public_folder, own), Publisher(public_folder, own, uid=STRANGER)
    monkeypatch.setattr("django_pooled.dashboard.watch.stats_dirs", lambda aliases: [public_folder])
    watch = Watch(linger=0.01)
    try:
        processes = watch.snapshot().overview.processes
        wait_until(lambda: not watch.open)
    finally:
        root.close()
        other.close()
    pids = [report.pid for report in processes]
    assert root.pid in pids
    assert other.pid not in pids


def test_the_answers_of_one_user_are_told_apart_by_nothing_but_their_pids() -> None:
    look = overview(process(pool(), pid=1, user=5), process(pool(), pid=2, user=5), user=5)
    assert [group.name for group in look.groups] == ["default"]
    assert "user=" not in as_text(of_overview(look))


def test_no_user_fills_the_screen_alone() -> None:
    trouble = {"last_error": "x" * 20_000, "last_error_age": 1.0, "server": "y" * 1000}
    crowd = [pool(f"{number}", **trouble) for number in range(100)]
    look = overview(process(pool(), user=33), process(*crowd, user=STRANGER))
    found = [finding for finding in findings.find(look) if finding.level]
    assert len(found) == 21
    assert found[-1].sentence == f"80 more sentences about pools of user {STRANGER} left out."
    assert max(len(finding.sentence) for finding in found) < 700
    assert look.groups[0].name == "default of user 33"
    # Where there is one user, all is said.
    alone = overview(process(*crowd, user=0), user=0)
    assert len([finding for finding in findings.find(alone) if finding.level]) == 100


def test_one_user_cannot_have_folders_under_many_names(public_folder: Path) -> None:
    for name in ("0", "007", "12345678901", "7x", "\u0667", "7", "-7"):
        (public_folder / f"django_pooled-{name}").mkdir()
    names = [found.path.name for found in find_folders([public_folder], None) if found.owner != OWN]
    assert names == (["django_pooled-7"] if OWN == 0 else [])


@pytest.fixture
def limits() -> UserLimits:
    return UserLimits(STRANGER)


def test_a_socket_is_asked_once_whatever_number_of_names_it_has(limits: UserLimits) -> None:
    assert [limits.take_socket((1, 7)) for _ in range(3)] == [True, False, False]


def test_of_too_many_sockets_some_are_asked(
    limits: UserLimits, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(user_limits, "MOST_SOCKETS", 3)
    assert [limits.take_socket((1, number)) for number in range(5)] == [True] * 3 + [False] * 2
    assert limits.problems() == [
        f"User {STRANGER} has more than 3 sockets; the others are not asked."
    ]


def test_too_long_answers_are_complained_of_once(limits: UserLimits) -> None:
    limits.take_bytes(user_limits.MOST_BYTES)
    assert not limits.exhausted
    for _ in range(2):
        limits.take_bytes(1)
        assert limits.exhausted
    assert len(limits.problems()) == 1


def test_names_beyond_the_limit_are_not_looked_at(
    public_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket_folder, "MOST_NAMES", 10)
    for number in range(50):
        (public_folder / f"{number}.00c0ffee.sock").touch()
    descriptor = os.open(public_folder, os.O_RDONLY)
    try:
        looked: list[Any] = []
        monkeypatch.setattr(socket_folder, "_ENTRY", _Counting(looked.append))
        assert list(socket_folder.entries(descriptor)) == []
        assert len(looked) == 10
    finally:
        os.close(descriptor)


class _Counting:
    """A pattern that matches nothing, and tells what it was asked for."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell

    def match(self, name: str) -> None:
        self._tell(name)
