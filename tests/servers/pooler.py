"""What the poolers before a server have in common, for the tests."""

from __future__ import annotations

import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import psycopg
from psycopg.rows import dict_row

from embedded_postgres import free_port
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from typing_extensions import Self

__all__ = ["Pooler"]


class Pooler:
    """One process, which lets everybody in and logs in at the server as its superuser.

    A subclass writes its configuration into the folder, and starts it.
    """

    host = "127.0.0.1"

    name: ClassVar[str]
    program: ClassVar[str | None]
    """Where it is; None if it is not installed."""
    pool_size: ClassVar[str]
    """Its setting for the most sessions of a database and user."""
    max_clients: ClassVar[str]
    """Its setting for the most clients."""
    following: ClassVar[Mapping[str, Any]]
    """Its settings with which prepared statements move from session to session."""
    console_login: ClassVar[Mapping[str, str]]
    """What leads to its console."""

    def __init__(self) -> None:
        self.port = free_port()
        self.folder = Path(tempfile.mkdtemp(prefix=f"{self.name.lower()}-", dir="/tmp"))

    def command(self) -> Sequence[str]:
        """Return what starts it."""
        raise NotImplementedError

    def start(self) -> None:
        """Start it, for the first time or again."""
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                self.command(),
                cwd=self.folder,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        wait_until(self._answers, what=f"{self.name} answers")

    def stop(self, how: signal.Signals = signal.SIGKILL) -> None:
        """End it, by a signal."""
        self._process.send_signal(how)
        self._process.wait(20.0)

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    def parameters(self, database: str) -> dict[str, Any]:
        """Return psycopg's connection parameters."""
        return {
            "host": self.host,
            "port": self.port,
            "dbname": database,
            "user": "postgres",
            "prepare_threshold": None,
        }

    def console(self, command: str) -> list[dict[str, Any]]:
        """Run a command on its console, and return its answer."""
        parameters = {**self.parameters(""), **self.console_login}
        with (
            psycopg.connect(**parameters, autocommit=True) as connection,
            psycopg.ClientCursor(connection, row_factory=dict_row) as cursor,
        ):
            cursor.execute(command.encode())
            return cursor.fetchall() if cursor.description else []

    def _answers(self) -> bool:
        psycopg.connect(**self.parameters("postgres")).close()
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        shutil.rmtree(self.folder)
