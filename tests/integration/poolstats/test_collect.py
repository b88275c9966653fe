"""Collection: thousands of workers come and go, and nothing is left of them."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from django_pooled.poolstats.processes.collect import collect
from django_pooled.poolstats.processes.question import Question
from django_pooled.poolstats.processes.socket_folders import SocketFolder
from django_pooled.poolstats.processes.user_limits import UserLimits
from django_pooled.stats import answering_socket
from django_pooled.stats.socket_folder import Entry
from tests.support.publisher import Publisher
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no Unix sockets")

ROOT = Path(__file__).resolve().parents[3]

WORKERS = int(os.environ.get("RECYCLED_WORKERS", "200"))
"""2000 end as the 200 do, in half a minute."""

# As a server that recycles its workers: some end by themselves, most without any clean-up.
RECYCLER = """
import os, signal, sys
from django_pooled.stats import publisher
from django_pooled.stats.snapshot import process_report

folder, workers = sys.argv[1], int(sys.argv[2])
os.register_at_fork(after_in_child=publisher.after_fork_in_child)

def work(number):
    publisher.start(folder, lambda: process_report([]))
    if publisher._publisher is None:
        os._exit(3)
    if number % 3 == 0:
        publisher.stop()
        os._exit(0)
    if number % 3 == 1:
        os._exit(0)
    os.kill(os.getpid(), signal.SIGKILL)

for number in range(workers):
    if not (child := os.fork()):
        work(number)
    _, status = os.waitpid(child, 0)
    if os.waitstatus_to_exitcode(status) == 3:
        sys.exit("a worker could not publish")
print(len(os.listdir(f"{folder}/django_pooled-{os.geteuid()}")))
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder to publish in, with a short path."""
    made = Path(tempfile.mkdtemp(prefix="stats-", dir="/tmp"))
    yield made
    shutil.rmtree(made)


def test_of_many_recycled_workers_nothing_is_left(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", RECYCLER, str(folder), str(WORKERS)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    # Each new one sweeps what the dead left, so that they never pile up; the last few may be
    # left, with nobody after them.
    assert int(done.stdout) < 20
    # And whoever looks sweeps those.
    found = collect(folder, timeout=5.0)
    assert (found.reports, found.silent, found.problems) == ([], [], [])
    assert list((folder / f"django_pooled-{os.geteuid()}").iterdir()) == []


def test_a_thousand_dead_ones_at_once_cost_the_reader_little(folder: Path) -> None:
    living = Publisher(folder)
    private = folder / f"django_pooled-{os.geteuid()}"
    program = """
import os, socket, sys
for number in range(1000):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{sys.argv[1]}/{2**22 + number}.{number:08x}.sock")
        listener.listen()
"""
    subprocess.run([sys.executable, "-c", program, str(private)], check=True)
    try:
        assert len(list(private.iterdir())) == 1001
        started = time.monotonic()
        found = collect(folder, timeout=60.0)
        assert time.monotonic() - started < 30.0
        assert [report.pid for report in found.reports] == [living.pid]
        assert len(list(private.iterdir())) == 1
    finally:
        living.close()


def test_a_forked_and_killed_family_leaves_nothing(folder: Path) -> None:
    parent = Publisher(folder)
    try:
        children = [int(parent.tell("fork and start")) for _ in range(8)]
        wait_until(lambda: len(collect(folder, timeout=5.0).reports) == 9)
        for child in children[:4]:
            os.kill(child, signal.SIGKILL)
        wait_until(
            lambda: (
                {report.pid for report in collect(folder, timeout=5.0).reports}
                == {parent.pid, *children[4:]}
            )
        )
        parent.kill()
        wait_until(lambda: len(collect(folder, timeout=5.0).reports) == 4)
    finally:
        parent.close()
    wait_until(lambda: not collect(folder, timeout=5.0).reports)
    assert list((folder / f"django_pooled-{os.geteuid()}").iterdir()) == []


def test_a_socket_that_is_gone_when_it_is_asked_is_no_news(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answering_socket.default_folder(folder)
    gone = Entry("4121.00c0ffee.sock", 4121, listens=True)
    monkeypatch.setattr("django_pooled.stats.socket_folder.entries", lambda descriptor: [gone])
    found = collect(folder, timeout=5.0)
    assert (found.reports, found.silent, found.problems) == ([], [], [])


def question_over(client: socket.socket) -> Question:
    folder = SocketFolder(Path("/nowhere"), os.geteuid())
    entry = Entry("4121.00c0ffee.sock", 4121, listens=True)
    question = Question(folder, -1, entry, UserLimits(os.geteuid()))
    question.client = client
    return question


def test_a_process_that_breaks_off_has_answered() -> None:
    ours, theirs = socket.socketpair()
    theirs.close()
    ours.close()
    question = question_over(ours)
    assert question.read()
    assert question._answer == b""


def test_a_process_that_has_nothing_to_say_yet_is_asked_again() -> None:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    question = question_over(ours)
    assert not question.read()
    theirs.sendall(b"{}")
    theirs.close()
    assert not question.read()
    assert question.read()
    assert question._answer == b"{}"
    ours.close()


READ_ONLY = """
import os, sys
from django_pooled.stats import publisher, socket_folder
from django_pooled.poolstats.processes.collect import collect
from django_pooled.stats.snapshot import process_report

# In place of /tmp, in which there may be a folder of this user's from before.
socket_folder.BASES = ("/usr", "/dev/shm")
try:
    open("/usr/probe", "w")
except OSError as error:
    print(error.strerror)
folder = sys.argv[1] or None
publisher.start(folder, lambda: process_report([]))
print(os.path.dirname(publisher._publisher.path))
found = collect(folder, timeout=5.0)
print(os.getpid() in [report.pid for report in found.reports], found.problems)
publisher.stop()
"""


@pytest.mark.parametrize("chosen", [True, False], ids=["stats_dir", "default"])
def test_with_a_read_only_root_processes_publish_elsewhere(folder: Path, chosen: bool) -> None:
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("only root on Linux may mount")
    # Of a container: / is read-only, /dev/shm and a volume are not.
    mounts = (
        f"mount -o remount,bind,ro / && mount -t tmpfs none {folder} && "
        'mount -t tmpfs none /dev/shm && exec "$0" -c "$@"'
    )
    where = str(folder) if chosen else ""
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", mounts, sys.executable, READ_ONLY, where],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    if "unshare:" in done.stderr or "mount:" in done.stderr:
        pytest.skip(done.stderr)
    base = where or "/dev/shm"
    assert done.stdout.splitlines() == [
        "Read-only file system",
        f"{base}/django_pooled-0",
        "True []",
    ], done.stderr
