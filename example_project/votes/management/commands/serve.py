"""Runs the whole site with one command: PostgreSQL, the migrations and gunicorn."""

from __future__ import annotations

import contextlib
import http.client
import os
import shlex
import socket
import subprocess
import sys
import tempfile
import time
from typing import IO, TYPE_CHECKING, Any, NoReturn

from django.conf import settings
from django.core.management import BaseCommand, CommandError, CommandParser
from embedded_postgres import EmbeddedServer, ServerError
from tabs_vs_spaces import local, stopping

if TYPE_CHECKING:
    from collections.abc import Iterator

STARTED_WITHIN = 60.0
"""Seconds that gunicorn has to answer its first request."""
GRACE = 12.0
"""Seconds that a child has to end when asked; gunicorn gives its own requests 10."""
MANAGE = local.PROJECT / "manage.py"


class Stop(Exception):
    """Ctrl-C was pressed or SIGTERM received."""


class Command(BaseCommand):
    """``manage.py serve``: the site, until Ctrl-C."""

    help = (
        "Runs the site: starts the embedded PostgreSQL unless DATABASE_URL is set, migrates, "
        "and serves the page with gunicorn until Ctrl-C."
    )
    # The database that a check could ask is not running yet.
    requires_system_checks = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
        parser.add_argument("--port", type=port_number, default=8000, help="0 takes any free one")
        parser.add_argument(
            "--workers", type=positive_number, default=2, help="gunicorn's processes"
        )
        parser.add_argument(
            "--threads", type=positive_number, default=4, help="threads in each of them"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        stopping.listen()
        # Entered in the order of starting, so that it closes in the order of stopping.
        with contextlib.ExitStack() as running:
            try:
                self.serve(running, **options)
            except Stop:
                self.say("Stopping ...")
            except Exception:
                # Ctrl-C also reached a child, which failed before the flag was looked at.
                if not stopping.requested():
                    raise
                self.say("Stopping ...")
        self.say("Stopped.")

    def serve(
        self,
        running: contextlib.ExitStack,
        *,
        host: str,
        port: int,
        workers: int,
        threads: int,
        **options: Any,
    ) -> NoReturn:
        """Start everything, then watch over it.

        Raises:
            Stop: When asked to.
            CommandError: Something can't be started, or ended by itself.
        """
        listener = running.enter_context(_listen(host, port))
        server = None
        environment = {**os.environ, "DJANGO_SECRET_KEY": settings.SECRET_KEY}
        if not environment.get("DATABASE_URL"):
            server = self.start_postgres(running)
            environment["DATABASE_URL"] = server.url()

        self.say("Migrating ...")
        with tempfile.TemporaryFile("w+") as errors:
            migration = _Child(running, "manage.py", "migrate", env=environment, stderr=errors)
            while migration.running:
                _pause()
            if migration.process.returncode:
                errors.seek(0)
                raise CommandError(f"The migrations failed.\n{_last_error(errors.read())}")

        gunicorn = _Child(
            running,
            *("-m", "gunicorn", "--config", str(local.PROJECT / "gunicorn.conf.py")),
            *("--bind", f"fd://{listener.fileno()}"),
            *("--workers", str(workers), "--threads", str(threads)),
            env=environment,
            pass_fds=[listener.fileno()],
        )
        address = listener.getsockname()[:2]
        deadline = time.monotonic() + STARTED_WITHIN
        while not _answers(address):
            if not gunicorn.running or time.monotonic() > deadline:
                raise CommandError("gunicorn did not start; its own words are above.")
            _pause()
        self.say(_welcome(host, address[1], embedded=server is not None))

        while gunicorn.running:
            _pause()
            if server is not None and not server.running:
                # Someone wanted to see what the pools make of it.
                self.say("PostgreSQL ended. Starting it again ...")
                with _said_clearly():
                    server.start()
                self.say("PostgreSQL is back.")
        raise CommandError("gunicorn ended by itself; its own words are above.")

    def start_postgres(self, running: contextlib.ExitStack) -> EmbeddedServer:
        """Start the embedded server and let other commands find it."""
        try:
            running.enter_context(local.held(settings.SECRET_KEY))
        except local.FolderUnusable as error:
            raise CommandError(
                f"{error} Name another folder in EXAMPLE_FOLDER, or a database in DATABASE_URL."
            ) from error
        _pause(0)
        self.say("Starting PostgreSQL ...")
        with _said_clearly():
            server = EmbeddedServer(local.FOLDER)
            # A Ctrl-C that also ended what it just ran to look around misled it about the place.
            _pause(0)
            running.push(server)
            server.start()
        local.announce(server.url())
        return server

    def say(self, text: str) -> None:
        """Print at once, into a file or pipe too."""
        # The terminal may have been closed, which is a reason to stop but not to fail.
        with contextlib.suppress(OSError):
            self.stdout.write(text)
            self.stdout.flush()


class _Child:
    """A Python process of our own, ended with all of its descendants when ``running`` closes."""

    def __init__(
        self,
        running: contextlib.ExitStack,
        *arguments: str,
        env: dict[str, str],
        stderr: IO[str] | None = None,
        pass_fds: list[int] | None = None,
    ) -> None:
        _pause(0)
        self.process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=local.PROJECT,
            env=env,
            stdin=subprocess.DEVNULL,
            stderr=stderr,
            pass_fds=pass_fds or [],
            # Ctrl-C reaches this process alone, which then stops the others in order.
            start_new_session=True,
        )
        running.callback(self.end)

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def end(self) -> None:
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(GRACE)
        # The session outlives its leader when a worker hangs.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, 9)
        self.process.wait()


def _pause(seconds: float = 0.1) -> None:
    time.sleep(seconds)
    if stopping.requested():
        raise Stop


@contextlib.contextmanager
def _said_clearly() -> Iterator[None]:
    try:
        yield
    except (ServerError, OSError, subprocess.SubprocessError) as error:
        raise CommandError(f"PostgreSQL did not start.\n{error}") from error


def _listen(host: str, port: int) -> socket.socket:
    # Bound here and handed to gunicorn: a port that is taken is known before anything starts,
    # and nobody can take it in between.
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        reason = error.strerror
        if error.errno is not None and not isinstance(error, socket.gaierror):
            # Without the address, which Python adds to the words.
            reason = os.strerror(error.errno)
        raise CommandError(
            f"Can't listen on {host} port {port}: {reason}. Choose with --host and --port."
        ) from error


def _answers(address: tuple[str, int]) -> bool:
    host, port = address
    everywhere = {"0.0.0.0": "127.0.0.1", "::": "::1"}
    connection = http.client.HTTPConnection(everywhere.get(host, host), port, timeout=1)
    try:
        connection.request("GET", "/", headers={"Host": "localhost"})
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _welcome(host: str, port: int, *, embedded: bool) -> str:
    poolstats = f"{shlex.quote(sys.executable)} {shlex.quote(str(MANAGE))} poolstats --watch"
    if os.environ.get("EXAMPLE_FOLDER"):
        poolstats = f"EXAMPLE_FOLDER={shlex.quote(str(local.FOLDER))} {poolstats}"
    hint = "" if embedded else " (with the same DATABASE_URL)"
    return (
        f"\n  Tabs or spaces?  http://{f'[{host}]' if ':' in host else host}:{port}/\n\n"
        f"  Watch the pools in a second terminal{hint}:\n"
        f"    {poolstats}\n\n"
        "  Ctrl-C stops everything. The votes are kept.\n"
    )


def _last_error(output: str) -> str:
    """Leave out the stack trace: what is kept are the lines behind its last frame."""
    lines = output.strip().splitlines()
    frames = [number for number, line in enumerate(lines) if line.startswith("  ")]
    return "\n".join(lines[frames[-1] + 1 :] if frames else lines)


def port_number(text: str) -> int:
    port = int(text)
    if not 0 <= port <= 65535:
        raise ValueError(port)
    return port


def positive_number(text: str) -> int:
    count = int(text)
    if count < 1:
        raise ValueError(count)
    return count
