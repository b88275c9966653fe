"""Odyssey before a server, for the tests."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import psycopg
from psycopg.rows import dict_row

from embedded_postgres import free_port
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from embedded_postgres import EmbeddedServer

__all__ = ["PROGRAM", "Odyssey"]

PROGRAM = shutil.which("odyssey", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/bin")


class Odyssey:
    """One process, which lets everybody in and logs in at the server as its superuser.

    Args:
        server: Where it leads to.
        pool: Its own pooling mode.
        settings: More for the rule of all databases and users, by the names of Odyssey's.
    """

    host = "127.0.0.1"

    def __init__(
        self, server: EmbeddedServer, pool: Literal["session", "transaction"], **settings: object
    ) -> None:
        self.port = free_port()
        self._folder = Path(tempfile.mkdtemp(prefix="odyssey-", dir="/tmp"))
        rule: dict[str, object] = {
            "authentication": "none",
            "storage": "server",
            "storage_user": server.user,
            "storage_password": server.password,
            "pool": pool,
            "pool_size": 3,
            "client_fwd_error": True,
            **settings,
        }
        lines = [
            "workers 1",
            f'locks_dir "{self._folder}"',
            "log_to_stdout yes",
            'log_format "%p %t %l [%i %s] (%c) %m\\n"',
            "log_stats no",
            "listen {",
            f'host "{self.host}"',
            f"port {self.port}",
            "}",
            'storage "server" {',
            'type "remote"',
            f'host "{server.host}"',
            f"port {server.port}",
            "}",
            "database default {",
            "user default {",
            *(f"{name} {_written(value)}" for name, value in rule.items()),
            "}",
            "}",
            'storage "local" {',
            'type "local"',
            "}",
            'database "console" {',
            "user default {",
            'authentication "none"',
            'role "admin"',
            'pool "session"',
            'storage "local"',
            "}",
            "}",
        ]
        self._config = self._folder / "odyssey.conf"
        self._config.write_text("\n".join([*lines, ""]))
        self.start()

    def start(self) -> None:
        """Start it, for the first time or again."""
        assert PROGRAM is not None
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [PROGRAM, str(self._config)],
                cwd=self._folder,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        wait_until(self._answers, what="Odyssey answers")

    def stop(self, how: signal.Signals = signal.SIGKILL) -> None:
        """End it."""
        self._process.send_signal(how)
        self._process.wait(20.0)

    def console(self, command: str) -> list[dict[str, Any]]:
        """Run a command on its console, and return its answer."""
        parameters = {**self.parameters("console"), "user": "console"}
        with psycopg.ClientCursor(
            psycopg.connect(**parameters, autocommit=True), row_factory=dict_row
        ) as cursor:
            cursor.execute(command.encode())
            rows = cursor.fetchall() if cursor.description else []
        cursor.connection.close()
        return rows

    @property
    def log(self) -> str:
        return (self._folder / "log").read_text()

    def parameters(self, database: str) -> dict[str, Any]:
        """Return psycopg's connection parameters."""
        return {
            "host": self.host,
            "port": self.port,
            "dbname": database,
            "user": "postgres",
            "prepare_threshold": None,
        }

    def _answers(self) -> bool:
        psycopg.connect(**self.parameters("postgres")).close()
        return True

    def __enter__(self) -> Odyssey:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        shutil.rmtree(self._folder)


def _written(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value) if isinstance(value, int) else f'"{value}"'
