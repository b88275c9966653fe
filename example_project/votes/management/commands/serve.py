"""Runs the whole site with one command: PostgreSQL, the migrations and gunicorn."""

from __future__ import annotations

import contextlib
import os
import secrets
import shlex
import subprocess
import sys
import tempfile
import time
from typing import TYPE_CHECKING, Any, NoReturn

from django.conf import settings
from django.core.management import BaseCommand, CommandError, CommandParser
from faults import channel
from faults.director import Director
from tabs_vs_spaces import address, local, stopping
from tabs_vs_spaces.child import Child

from embedded_postgres import EmbeddedServer, ServerError

if TYPE_CHECKING:
    from collections.abc import Iterator

STARTED_WITHIN = 60.0
"""Seconds that gunicorn has to answer its first request."""
THREADS = 24
"""In each worker: as many as may wait for a database that is away, and some for who watches."""
MANAGE = local.PROJECT / "manage.py"


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
            "--threads", type=positive_number, default=THREADS, help="threads in each of them"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        stopping.listen()
        # Entered in the order of starting, so that it closes in the order of stopping.
        with contextlib.ExitStack() as running:
            try:
                self.serve(running, **options)
            except stopping.Stop:
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
        try:
            listener = running.enter_context(address.listen(host, port))
        except address.AddressUnusable as error:
            raise CommandError(f"{error} Choose with --host and --port.") from error
        here = address.Address(*listener.getsockname()[:2])
        server = None
        key = secrets.token_urlsafe(16)
        environment = {
            **os.environ,
            "DJANGO_SECRET_KEY": settings.SECRET_KEY,
            "EXAMPLE_ENTRY_KEY": key,
        }
        if not environment.get("DATABASE_URL"):
            server = self.start_postgres(running)
            environment["DATABASE_URL"] = server.url()

        self.say("Migrating ...")
        with tempfile.TemporaryFile("w+") as errors:
            migration = Child(running, "manage.py", "migrate", env=environment, stderr=errors)
            while migration.running:
                stopping.pause()
            if migration.process.returncode:
                errors.seek(0)
                raise CommandError(f"The migrations failed.\n{_last_error(errors.read())}")

        director = Director(
            say=self.say,
            server=server,
            url=environment["DATABASE_URL"],
            address=here,
            threads=threads,
            takes_orders=settings.DEBUG and here.is_loopback,
        )
        running.callback(director.close)
        if director.socket:
            environment[channel.VARIABLE] = director.socket
        gunicorn = Child(
            running,
            *("-m", "gunicorn", "--config", str(local.PROJECT / "gunicorn.conf.py")),
            *("--bind", f"fd://{listener.fileno()}"),
            *("--workers", str(workers), "--threads", str(threads)),
            env=environment,
            pass_fds=[listener.fileno()],
        )
        # Before gunicorn, whose requests may be waiting for a frozen server.
        running.callback(director.close)
        deadline = time.monotonic() + STARTED_WITHIN
        while not here.answers():
            if not gunicorn.running or time.monotonic() > deadline:
                raise CommandError("gunicorn did not start; its own words are above.")
            stopping.pause()
        self.say(_welcome(host, here, key, embedded=server is not None, debug=settings.DEBUG))

        while gunicorn.running:
            with _said_clearly():
                director.work(0.1)
            stopping.pause(0)
        raise CommandError("gunicorn ended by itself; its own words are above.")

    def start_postgres(self, running: contextlib.ExitStack) -> EmbeddedServer:
        """Start the embedded server and let other commands find it."""
        try:
            running.enter_context(local.held(settings.SECRET_KEY))
        except local.FolderUnusable as error:
            raise CommandError(
                f"{error} Name another folder in EXAMPLE_FOLDER, or a database in DATABASE_URL."
            ) from error
        stopping.pause(0)
        self.say("Starting PostgreSQL ...")
        with _said_clearly():
            server = EmbeddedServer(local.FOLDER)
            # A Ctrl-C that also ended what it just ran to look around misled it about the place.
            stopping.pause(0)
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


@contextlib.contextmanager
def _said_clearly() -> Iterator[None]:
    try:
        yield
    except (ServerError, OSError, subprocess.SubprocessError) as error:
        raise CommandError(f"PostgreSQL did not start.\n{error}") from error


def _welcome(host: str, here: address.Address, key: str, *, embedded: bool, debug: bool) -> str:
    site = f"http://{f'[{host}]' if ':' in host else host}:{here.port}/"
    poolstats = f"{shlex.quote(sys.executable)} {shlex.quote(str(MANAGE))} poolstats --watch"
    if os.environ.get("EXAMPLE_FOLDER"):
        poolstats = f"EXAMPLE_FOLDER={shlex.quote(str(local.FOLDER))} {poolstats}"
    hint = "" if embedded else " (with the same DATABASE_URL)"
    lines = [
        f"\n  Tabs or spaces?  {site}\n",
        "  A sign-in link for the live page of the pools:",
        f"    {site}pools/enter/?key={key}\n",
        f"  Watch them in a second terminal{hint}:",
        f"    {poolstats}\n",
    ]
    if not debug and here.is_loopback:
        lines.append("  Started with DJANGO_DEBUG=1, the page has buttons that break things.\n")
    return "\n".join([*lines, "  Ctrl-C stops everything. The votes are kept.\n"])


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
