"""Processes that publish their pools, and the side that reads them."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from django_pooled.poolstats.processes.collect import Collection, collect, collect_all
from django_pooled.poolstats.processes.report_parser import parse_report
from django_pooled.stats import answering_socket, socket_folder
from django_pooled.stats import publisher as publishing
from django_pooled.stats.snapshot import process_report
from django_pooled.stats.socket_folder import FolderRefused
from tests.support.publisher import Publisher, snapshot
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no Unix sockets")

as_root = pytest.mark.skipif(
    sys.platform == "win32" or os.geteuid() != 0, reason="only root can act as another user"
)
STRANGER = 4711


@pytest.fixture
def private(stats_dir: Path) -> Path:
    """The folder of the user's own inside it."""
    return answering_socket.default_folder(str(stats_dir))


@pytest.fixture
def unpublished() -> Iterator[None]:
    """The test's own process, which publishes nothing before and after."""
    publishing.stop()
    yield
    publishing.stop()


def pids(stats_dir: Path) -> list[int]:
    return [report.pid for report in collect(stats_dir).reports]


def impostor(private: Path, pid: int, answer: bytes) -> socket.socket:
    """Answer once in the name of a process, with anything."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(private / socket_folder.socket_name(pid)))
    listener.listen()

    def serve() -> None:
        # The reader may hang up when it has read enough, and the test close the listener.
        with contextlib.suppress(OSError):
            connection, _ = listener.accept()
            with connection:
                connection.sendall(answer)

    threading.Thread(target=serve, daemon=True).start()
    return listener


# Reading


def test_every_process_answers_with_its_own_pools(
    stats_dir: Path, make_publisher: Callable[..., Publisher]
) -> None:
    made = [make_publisher({"in_use": number}, {"alias": "replica"}) for number in range(3)]

    collection = collect(stats_dir)

    assert [report.pid for report in collection.reports] == sorted(one.pid for one in made)
    found = {report.pid: report.pools for report in collection.reports}
    for number, one in enumerate(made):
        assert [pool.alias for pool in found[one.pid]] == ["default", "replica"]
        assert found[one.pid][0].in_use == number
    assert collection.silent == []
    assert collection.problems == []


def test_figures_are_those_of_the_moment_of_the_question(
    stats_dir: Path, unpublished: None
) -> None:
    pools = [snapshot(in_use=1)]
    publishing.start(str(stats_dir), lambda: process_report(pools))
    assert collect(stats_dir).reports[0].pools[0].in_use == 1
    pools[0] = snapshot(in_use=5)
    assert collect(stats_dir).reports[0].pools[0].in_use == 5


def test_what_a_killed_process_left_is_swept_by_the_reader(
    private: Path, stats_dir: Path, make_publisher: Callable[..., Publisher]
) -> None:
    dead, living = make_publisher(), make_publisher()
    dead.kill()
    assert len(list(private.iterdir())) == 2

    collection = collect(stats_dir)

    assert [report.pid for report in collection.reports] == [living.pid]
    assert collection.silent == []
    assert [path.name.split(".")[0] for path in private.iterdir()] == [str(living.pid)]


def test_a_new_process_sweeps_what_dead_ones_left(
    private: Path, make_publisher: Callable[..., Publisher]
) -> None:
    for _ in range(3):
        make_publisher().kill()
    newest = make_publisher()
    wait_until(lambda: len(list(private.iterdir())) == 1)
    assert next(private.iterdir()).name.startswith(f"{newest.pid}.")


def test_a_socket_of_a_dead_process_is_swept_though_its_pid_is_in_use_again(
    private: Path, stats_dir: Path, make_publisher: Callable[..., Publisher]
) -> None:
    living = make_publisher()
    leftover = private / socket_folder.socket_name(living.pid)
    with socket.socket(socket.AF_UNIX) as former:
        former.bind(str(leftover))

    assert pids(stats_dir) == [living.pid]
    assert not leftover.exists()


def test_a_stopped_process_is_silent_and_costs_no_more_than_the_timeout(
    stats_dir: Path, make_publisher: Callable[..., Publisher]
) -> None:
    frozen = [make_publisher() for _ in range(3)]
    living = make_publisher()
    for one in frozen:
        one.freeze()

    started = time.monotonic()
    collection = collect(stats_dir, timeout=0.5)
    took = time.monotonic() - started

    assert collection.silent == sorted(one.pid for one in frozen)
    assert [report.pid for report in collection.reports] == [living.pid]
    assert 0.5 <= took < 5.0


def test_a_stopped_process_stays_silent_however_often_it_is_asked_and_answers_when_it_goes_on(
    stats_dir: Path, make_publisher: Callable[..., Publisher]
) -> None:
    frozen = make_publisher()
    frozen.freeze()
    for _ in range(answering_socket.BACKLOG + 5):
        assert collect(stats_dir, timeout=0.01).silent == [frozen.pid]
    frozen.process.send_signal(signal.SIGCONT)
    assert wait_until(lambda: pids(stats_dir)) == [frozen.pid]


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        (b"", "is empty"),
        (b'{"version": 1, "pid": 1, "comm', "is not whole or not JSON"),
        (b"\xff\xfe", "is not whole or not JSON"),
        (b"[" * 100_000, "is not whole or not JSON"),
        (b"[]", "is not a report of pools"),
        (b'{"version": 99}', "is in format 99, newer than this command's 1"),
        (b'{"version": 1, "pid": 1, "command": "x"}', "lacks figures"),
        (b'{"version": 1, "pid": 1, "command": "x", "pools": [{"alias": "a"}]}', "lacks figures"),
        (b'{"pid": 1, "error": "KeyError"}', "only says that it failed (KeyError)"),
        (b"x" * (4 * 1024 * 1024 + 1), "is longer than"),
    ],
)
def test_a_corrupt_answer_is_a_sentence(
    private: Path, stats_dir: Path, answer: bytes, complaint: str
) -> None:
    with impostor(private, os.getpid(), answer):
        collection = collect(stats_dir, timeout=5.0)
        assert collection.reports == []
        (problem,) = collection.problems
        assert problem.startswith(f"Process {os.getpid()} gave an answer that {complaint}")


def test_a_report_is_accepted_as_the_publisher_makes_it() -> None:
    report = process_report([snapshot(), snapshot("replica")])
    answer = json.dumps(report.as_json()).encode()
    assert parse_report(answer).as_json() == report.as_json()


def test_a_report_that_fails_does_not_end_the_publishing(
    stats_dir: Path, make_publisher: Callable[..., Publisher]
) -> None:
    publisher = make_publisher()
    publisher.tell("break")
    for _ in range(2):
        (problem,) = collect(stats_dir, 30.0).problems
        assert "only says that it failed" in problem


def test_files_that_are_no_sockets_are_left_alone(private: Path, stats_dir: Path) -> None:
    (private / "1.00000000.sock").write_text("not a socket")
    (private / "notes").write_text("mine")
    collection = collect(stats_dir)
    assert (collection.reports, collection.silent, collection.problems) == ([], [], [])
    assert len(list(private.iterdir())) == 2


def test_nothing_is_created_by_looking(stats_dir: Path) -> None:
    collection = collect(stats_dir)
    assert collection.folders == [str(stats_dir / f"django_pooled-{os.geteuid()}")]
    assert collection.problems == []
    assert list(stats_dir.iterdir()) == []


# Publishing


def test_the_folder_is_private_and_the_socket_is_gone_after_a_clean_exit(
    private: Path, make_publisher: Callable[..., Publisher]
) -> None:
    publisher = make_publisher()
    assert private.stat().st_mode & 0o777 == 0o700
    assert [path.name.split(".")[0] for path in private.iterdir()] == [str(publisher.pid)]
    publisher.close()
    assert list(private.iterdir()) == []


def test_a_publisher_can_stop_and_start_again(
    private: Path, stats_dir: Path, make_publisher: Callable[..., Publisher]
) -> None:
    publisher = make_publisher()
    publisher.tell("stop")
    assert list(private.iterdir()) == []
    publisher.tell("start")
    publisher.tell("start")
    assert len(list(private.iterdir())) == 1
    assert pids(stats_dir) == [publisher.pid]


def test_the_thread_ends_when_publishing_stops(stats_dir: Path, unpublished: None) -> None:
    publishing.start(str(stats_dir), lambda: process_report([]))
    (thread,) = [one for one in threading.enumerate() if one.name == "django_pooled.publish"]
    assert thread.daemon
    publishing.stop()
    thread.join(5.0)
    assert not thread.is_alive()


def test_an_idle_publisher_uses_no_processor_time(make_publisher: Callable[..., Publisher]) -> None:
    publisher = make_publisher()
    publisher.tell("processor time")
    before = float(publisher.tell("processor time"))
    time.sleep(1.0)
    assert float(publisher.tell("processor time")) - before < 0.01


def test_a_reader_that_does_not_read_holds_nobody_up_for_long(
    private: Path, stats_dir: Path, make_publisher: Callable[..., Publisher]
) -> None:
    publisher = make_publisher(*[{"alias": f"database{number}"} for number in range(2000)])
    with socket.socket(socket.AF_UNIX) as idler:
        idler.connect(str(next(private.iterdir())))
        collection = collect(stats_dir, timeout=10.0)
    assert [report.pid for report in collection.reports] == [publisher.pid]
    assert len(collection.reports[0].pools) == 2000


# Forks


def test_a_forked_child_leaves_its_parents_socket_alone(
    stats_dir: Path, make_publisher: Callable[..., Publisher]
) -> None:
    parent = make_publisher()
    parent.tell("fork and stop")
    parent.tell("fork")
    assert pids(stats_dir) == [parent.pid]


def test_a_forked_child_publishes_for_itself(
    stats_dir: Path, make_publisher: Callable[..., Publisher]
) -> None:
    parent = make_publisher()
    child = int(parent.tell("fork and start"))
    wait_until(lambda: pids(stats_dir) == sorted([parent.pid, child]))


def test_a_child_that_outlives_its_parent_does_not_keep_its_socket_alive(
    private: Path, stats_dir: Path, make_publisher: Callable[..., Publisher]
) -> None:
    parent = make_publisher()
    parent.tell("fork")
    parent.kill()
    collection = collect(stats_dir, timeout=5.0)
    assert (collection.reports, collection.silent, collection.problems) == ([], [], [])
    assert list(private.iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="nothing tells who listens")
def test_a_dead_process_is_not_silent_though_a_child_forked_past_python_holds_its_socket(
    private: Path, stats_dir: Path, make_publisher: Callable[..., Publisher]
) -> None:
    parent = make_publisher()
    parent.tell("forget hooks")
    parent.tell("fork")
    parent.kill()
    assert collect(stats_dir, timeout=0.2).silent == []
    assert list(private.iterdir()) == []


# Folders


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's /proc")
def test_a_folder_in_which_no_socket_can_be_made_gives_way_to_the_next(
    stats_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It is there and private, and yet nothing can be made in it: as on a read-only root.
    unusable = Path("/proc/self/fd")
    monkeypatch.setattr(
        socket_folder, "candidates", lambda given, uid: [unusable, stats_dir / "private"]
    )
    publishing.stop()
    try:
        publishing.start(None, lambda: process_report([]))
        assert [path.suffix for path in (stats_dir / "private").iterdir()] == [".sock"]
    finally:
        publishing.stop()
    assert list((stats_dir / "private").iterdir()) == []


def test_the_default_folder_follows_from_the_user_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = socket_folder.candidates(None, os.geteuid())
    for name in ("XDG_RUNTIME_DIR", "TMPDIR", "HOME"):
        monkeypatch.setenv(name, "/elsewhere")
    assert socket_folder.candidates(None, os.geteuid()) == expected
    assert all(str(os.geteuid()) in path.name for path in expected)


def test_a_second_folder_stands_in_for_one_that_cant_be_used(
    stats_dir: Path, monkeypatch: pytest.MonkeyPatch, unpublished: None
) -> None:
    blocked, spare = stats_dir / "blocked", stats_dir / "spare"
    blocked.write_text("a file where the folder should be")
    monkeypatch.setattr(socket_folder, "BASES", (str(blocked), str(spare)))
    publishing.start(None, lambda: process_report([snapshot()]))
    assert pids_by_default() == [os.getpid()]
    assert len(list((spare / f"django_pooled-{os.geteuid()}").iterdir())) == 1


def pids_by_default() -> list[int]:
    return [report.pid for report in collect(None).reports if report.pid == os.getpid()]


def _make_symlink(private: Path) -> str:
    private.rename(private.with_name("real"))
    private.symlink_to(private.with_name("real"))
    return "is a symbolic link"


def _open_to_others(private: Path) -> str:
    private.chmod(0o750)
    return "is open to other users"


def _replace_by_file(private: Path) -> str:
    private.rmdir()
    private.write_text("")
    return "is not a folder"


def _give_away(private: Path) -> str:
    os.chown(private, STRANGER, STRANGER)
    return f"belongs to user {STRANGER}"


@pytest.mark.parametrize(
    "spoil",
    [
        _make_symlink,
        _open_to_others,
        _replace_by_file,
        pytest.param(_give_away, marks=as_root),
    ],
)
def test_a_folder_that_is_not_private_is_neither_written_nor_read(
    private: Path,
    stats_dir: Path,
    spoil: Callable[[Path], str],
    caplog: pytest.LogCaptureFixture,
    unpublished: None,
) -> None:
    complaint = spoil(private)
    caplog.set_level(logging.DEBUG, logger="django_pooled.publish")

    publishing.start(str(stats_dir), lambda: process_report([]))

    (record,) = caplog.records
    assert (record.name, record.levelno) == ("django_pooled.publish", logging.DEBUG)
    assert complaint in record.getMessage()
    collection = collect(stats_dir)
    assert collection.reports == []
    (problem,) = collection.problems
    assert complaint in problem
    with pytest.raises(FolderRefused, match=complaint):
        answering_socket.default_folder(str(stats_dir))


def test_a_path_that_is_too_long_turns_publishing_off(
    stats_dir: Path, caplog: pytest.LogCaptureFixture, unpublished: None
) -> None:
    deep = stats_dir / ("x" * 100)
    caplog.set_level(logging.DEBUG, logger="django_pooled.publish")
    publishing.start(str(deep), lambda: process_report([]))
    (record,) = caplog.records
    assert "a socket's path may have" in record.getMessage()
    assert list(answering_socket.default_folder(str(deep)).iterdir()) == []


def test_a_path_of_the_greatest_length_still_works(stats_dir: Path, unpublished: None) -> None:
    rest = socket_folder.SUN_PATH_LIMIT - len(str(stats_dir)) - len("//")
    inner = len(f"django_pooled-{os.geteuid()}/") + len(socket_folder.socket_name(os.getpid()))
    deep = stats_dir / ("x" * (rest - inner))
    publishing.start(str(deep), lambda: process_report([]))
    assert pids(deep) == [os.getpid()]


def test_a_process_that_gets_no_more_threads_leaves_no_socket_behind(
    stats_dir: Path,
    private: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    caplog.set_level(logging.DEBUG, "django_pooled.publish")
    publishing.stop()
    monkeypatch.setattr(threading.Thread, "start", refuse)
    publishing.start(stats_dir, lambda: process_report([]))
    monkeypatch.undo()
    publishing.stop()
    assert "can't start new thread" in caplog.text
    assert list(private.iterdir()) == []


@as_root
@pytest.mark.skipif(shutil.which("unshare") is None, reason="there is no unshare")
@pytest.mark.parametrize("mount", ["-o ro", "-o nr_inodes=1"], ids=["read-only", "full"])
def test_a_file_system_that_takes_nothing_turns_publishing_off(stats_dir: Path, mount: str) -> None:
    program = (
        "import logging, sys; logging.basicConfig(level='DEBUG', stream=sys.stdout);"
        "from django_pooled.stats import publisher as publishing;"
        f"publishing.start({str(stats_dir / 'stats')!r}, dict); print('goes on')"
    )
    mounted = f'mount -t tmpfs {mount} none {stats_dir} && exec {sys.executable} -c "$0"'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", mounted, program],
        cwd=Path(__file__).resolve().parents[3],
        capture_output=True,
        text=True,
        check=False,
    )
    if "unshare" in done.stderr or "mount" in done.stderr:
        pytest.skip(done.stderr)
    assert done.stdout.endswith("goes on\n"), done.stderr
    assert done.stdout.count("DEBUG:django_pooled.publish:") == 1
    assert done.stderr == ""


# Other users


@as_root
def test_root_sees_the_processes_of_every_user(
    stats_dir: Path, make_publisher: Callable[..., Publisher]
) -> None:
    stats_dir.chmod(0o777)
    own, other = make_publisher(), make_publisher(uid=STRANGER)
    assert pids(stats_dir) == sorted([own.pid, other.pid])
    only = collect(stats_dir, uid=STRANGER)
    assert [report.pid for report in only.reports] == [other.pid]


@as_root
def test_a_user_sees_only_processes_of_his_own(
    stats_dir: Path, make_publisher: Callable[..., Publisher]
) -> None:
    stats_dir.chmod(0o777)
    make_publisher()
    other = make_publisher(uid=STRANGER)
    program = (
        "import os, sys; from django_pooled.poolstats.processes.collect import collect;"
        f"os.setgid({STRANGER}); os.setuid({STRANGER});"
        "print([report.pid for report in collect(sys.argv[1]).reports])"
    )
    seen = subprocess.check_output(
        [sys.executable, "-c", program, str(stats_dir)],
        cwd=Path(__file__).resolve().parents[3],
        text=True,
    )
    assert seen == f"[{other.pid}]\n"


@as_root
@pytest.mark.skipif(sys.platform != "linux", reason="nothing tells who listens")
def test_a_socket_that_another_user_holds_is_not_trusted(private: Path, stats_dir: Path) -> None:
    # As root's it stays in a folder of the stranger's.
    os.chown(private, STRANGER, STRANGER)
    private.rename(private.with_name(f"django_pooled-{STRANGER}"))
    with impostor(private.with_name(f"django_pooled-{STRANGER}"), 1, b"{}"):
        (problem,) = collect(stats_dir, uid=STRANGER).problems
    assert "is held by user 0" in problem


@as_root
@pytest.mark.skipif(sys.platform != "linux", reason="nothing tells who asks")
def test_a_process_answers_nobody_but_its_own_user_and_root(
    private: Path, stats_dir: Path, unpublished: None
) -> None:
    publishing.start(str(stats_dir), lambda: process_report([]))
    socket_path = next(private.iterdir())
    for path, mode in ((stats_dir, 0o755), (private, 0o755), (socket_path, 0o777)):
        path.chmod(mode)
    program = (
        f"import os, socket, sys; os.setgid({STRANGER}); os.setuid({STRANGER});"
        "client = socket.socket(socket.AF_UNIX);"
        "client.connect(sys.argv[1]); print(client.recv(100))"
    )
    answer = subprocess.check_output(
        [sys.executable, "-c", program, str(socket_path)],
        text=True,
    )
    assert answer == "b''\n"


@as_root
@pytest.mark.skipif(shutil.which("unshare") is None, reason="there is no unshare")
def test_a_process_with_a_private_tmp_is_found_in_its_own_view_of_the_file_system() -> None:
    command = 'mount -t tmpfs none /tmp && exec "$0" -m tests.support.publisher "$@"'
    with subprocess.Popen(
        ["unshare", "-m", "sh", "-c", command, sys.executable, '[{"alias": "hidden"}]', "{}"],
        cwd=Path(__file__).resolve().parents[3],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as hidden:
        assert hidden.stdout is not None
        if not hidden.stdout.readline():
            pytest.skip("no file system can be mounted here")
        found = [report.pid for report in collect(None).reports]
        hidden.communicate()
    assert hidden.pid in found


def test_a_process_under_gevent_answers(stats_dir: Path) -> None:
    pytest.importorskip("gevent")
    publisher = Publisher(stats_dir, gevent=True)
    try:
        child = int(publisher.tell("fork and start"))
        wait_until(lambda: pids(stats_dir) == sorted([publisher.pid, child]))
    finally:
        publisher.close()


def test_a_child_forked_under_gevent_answers_for_itself(stats_dir: Path) -> None:
    pytest.importorskip("gevent", reason="gevent is not installed")
    publisher = Publisher(stats_dir, gevent=True)
    child = int(publisher.tell("fork and start"))
    assert wait_until(lambda: sorted(pids(stats_dir)) == sorted([publisher.pid, child]))
    publisher.close()
    assert wait_until(lambda: pids(stats_dir) == [])


# Prints once its file descriptors are spent but for one, and frees some when it is told to. A
# thread that waits in accept() has the one for its next caller already.
SPENT = """
import os, resource, sys, threading, time
from django_pooled.stats import publisher as publishing
from django_pooled.stats.snapshot import process_report

publishing.start(sys.argv[1], lambda: process_report([]))
[listener] = [one for one in threading.enumerate() if one.name == "django_pooled.publish"]
while sys._current_frames()[listener.ident].f_code.co_name != "accept":
    time.sleep(0.001)
limit = resource.getrlimit(resource.RLIMIT_NOFILE)
# Those below are standard input, output and error; what is open above stays open.
resource.setrlimit(resource.RLIMIT_NOFILE, (3, limit[1]))
print("spent", flush=True)
sys.stdin.readline()
resource.setrlimit(resource.RLIMIT_NOFILE, limit)
print("freed", flush=True)
sys.stdin.readline()
"""


def test_a_process_without_file_descriptors_answers_when_it_has_some_again(stats_dir: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", SPENT, str(stats_dir)],
        cwd=Path(__file__).resolve().parents[3],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "spent\n"
        pids(stats_dir)  # takes what the thread may have had in hand
        found = collect(stats_dir, timeout=0.2)
        assert (found.reports, found.silent) == ([], [process.pid])
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "freed\n"
        assert wait_until(lambda: pids(stats_dir) == [process.pid])
        process.stdin.close()


def test_a_socket_that_cannot_get_its_name_leaves_nothing_behind(
    stats_dir: Path,
    private: Path,
    unpublished: None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, caplog.at_level(logging.DEBUG, "django_pooled"):
        patch.setattr(os, "rename", refuse)
        publishing.start(str(stats_dir), lambda: process_report([]))
    assert (
        "cannot publish the pool statistics of this process: [Errno 28] No space left"
        in caplog.text
    )
    assert list(private.iterdir()) == []


# The past


def test_a_child_remembers_nothing_and_with_a_process_its_past_ends(
    stats_dir: Path, make_publisher: Callable[..., Publisher]
) -> None:
    def beginnings() -> dict[int, float]:
        reports = collect_all([stats_dir], 10.0, history=True).reports
        return {report.pid: report.history[0].time for report in reports if report.history}

    parent = make_publisher()
    began = wait_until(lambda: beginnings()[parent.pid])
    before = time.time()
    child = int(parent.tell("fork and start"))
    wait_until(lambda: child in beginnings())
    assert began < before <= beginnings()[child]
    parent.kill()
    wait_until(lambda: beginnings().keys() == {child})


def test_a_look_at_the_servers_keeps_no_reader_waiting(stats_dir: Path, unpublished: None) -> None:
    looks: list[threading.Event] = []
    looking = threading.Semaphore(0)

    def look() -> None:
        looks.append(threading.Event())
        looking.release()
        assert looks[-1].wait(30.0)

    publishing.start(str(stats_dir), lambda: process_report([snapshot()]), look_at_servers=look)
    try:
        for sessions in (True, False, True):
            answered = collect_all([stats_dir], 30.0, sessions=sessions)
            assert [report.pid for report in answered.reports] == [os.getpid()]
        assert looking.acquire(timeout=30.0)
        # A second one would only queue for the same connection.
        assert len(looks) == 1
    finally:
        looks[0].set()

    def looks_again() -> bool:
        collect_all([stats_dir], 30.0, sessions=True)
        return looking.acquire(blocking=False)

    wait_until(looks_again)
    looks[1].set()


def test_a_process_that_answered_first_and_not_later_keeps_its_answer() -> None:
    first = Collection([replace(process_report([snapshot()]), pid=pid) for pid in (1, 2, 3)])
    later = Collection([replace(process_report([]), pid=2)], silent=[3, 4])
    both = first.updated(later)
    assert [(report.pid, len(report.pools)) for report in both.reports] == [(2, 0), (3, 1)]
    assert both.silent == [4]
