"""PgBouncer before a server, for the tests."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import psycopg

from example_project.embedded_postgres import free_port
from tests.servers import wait_until

if TYPE_CHECKING:
    from types import TracebackType

    from example_project.embedded_postgres import EmbeddedServer

__all__ = ["PROGRAM", "PgBouncer"]

PROGRAM = shutil.which("pgbouncer", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/bin")


class PgBouncer:
    """One process, which lets everybody in and logs in at the server as its superuser.

    Args:
        server: Where it leads to.
        pool_mode: PgBouncer's own.
        port: The server's port, if it is behind something else.
    """

    host = "127.0.0.1"

    def __init__(
        self,
        server: EmbeddedServer,
        pool_mode: Literal["session", "transaction"],
        port: int | None = None,
    ) -> None:
        assert PROGRAM is not None
        self.port = free_port()
        self._folder = Path(tempfile.mkdtemp(prefix="pgbouncer-", dir="/tmp"))
        self._folder.chmod(0o755)
        secret = f"password={server.password}"
        config = self._folder / "pgbouncer.ini"
        config.write_text(
            f"""
            [databases]
            * = host={server.host} port={port or server.port} user={server.user} {secret}
            [pgbouncer]
            listen_addr = {self.host}
            listen_port = {self.port}
            unix_socket_dir =
            auth_type = any
            pool_mode = {pool_mode}
            default_pool_size = 3
            ignore_startup_parameters = extra_float_digits
            server_login_retry = 0.1
            """.replace("            ", "")
        )
        config.chmod(0o644)
        # It refuses to run as root.
        as_user = ["-u", "nobody"] if sys.platform != "win32" and os.geteuid() == 0 else []
        with (self._folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [PROGRAM, *as_user, str(config)], stdout=log, stderr=log, start_new_session=True
            )
        wait_until(self._answers, what="PgBouncer answers")

    def _answers(self) -> bool:
        psycopg.connect(host=self.host, port=self.port, dbname="postgres", user="postgres").close()
        return True

    def __enter__(self) -> PgBouncer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.wait()
        shutil.rmtree(self._folder)
