"""PgBouncer beside the application, as the pooler that others use."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg

from embedded_postgres import free_port
from tests.servers.pgbouncer import PROGRAM
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from embedded_postgres import EmbeddedServer

    from .contestants import Bouncer

__all__ = ["PROGRAM", "PgBouncer"]


class PgBouncer:
    """One process, which lets everybody in and logs in at the server as its superuser.

    Args:
        server: where it leads to.
        port: the server's, or that of what is before it.
        mode: PgBouncer's own.
        size: connections to the server, at most.
        tls: whether it speaks TLS with the server; the application speaks to it in the clear.
    """

    host = "127.0.0.1"

    def __init__(
        self, server: EmbeddedServer, port: int, mode: Bouncer, size: int, tls: bool
    ) -> None:
        assert PROGRAM is not None
        self.port = free_port()
        self._folder = Path(tempfile.mkdtemp(prefix="pgbouncer-", dir="/tmp"))
        self._folder.chmod(0o755)
        login = f"user={server.user} password={server.password}"
        config = self._folder / "pgbouncer.ini"
        config.write_text(
            "[databases]\n"
            f"* = host={server.host} port={port} {login}\n"
            "[pgbouncer]\n"
            f"listen_addr = {self.host}\n"
            f"listen_port = {self.port}\n"
            "unix_socket_dir =\n"
            "auth_type = any\n"
            f"pool_mode = {mode}\n"
            f"default_pool_size = {size}\n"
            "max_client_conn = 1000\n"
            "ignore_startup_parameters = extra_float_digits\n"
            "log_connections = 0\n"
            "log_disconnections = 0\n"
            f"server_tls_sslmode = {'require' if tls else 'disable'}\n"
        )
        config.chmod(0o644)
        # It refuses to run as root.
        as_user = ["-u", "nobody"] if os.geteuid() == 0 else []
        with (self._folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [PROGRAM, *as_user, str(config)], stdout=log, stderr=log, start_new_session=True
            )
        wait_until(self._answers, what="PgBouncer answers")

    def _answers(self) -> bool:
        psycopg.connect(host=self.host, port=self.port, dbname="postgres", user="postgres").close()
        return True

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()
        shutil.rmtree(self._folder)
