"""Odyssey before a server, for the tests."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING, Literal

from .pooler import Pooler

if TYPE_CHECKING:
    from embedded_postgres import EmbeddedServer

__all__ = ["PROGRAM", "Odyssey"]

PROGRAM = shutil.which("odyssey", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/bin")


class Odyssey(Pooler):
    """One Odyssey; see `Pooler`.

    Args:
        server: Where it leads to.
        pool: Its own pooling mode.
        settings: More for the rule of all databases and users, by the names of Odyssey's.
    """

    name = "Odyssey"
    program = PROGRAM
    pool_size = "pool_size"
    max_clients = "client_max"
    following = {"pool_reserve_prepared_statement": True, "pool_discard": False}
    console_login = {"dbname": "console", "user": "console"}

    def __init__(
        self, server: EmbeddedServer, pool: Literal["session", "transaction"], **settings: object
    ) -> None:
        super().__init__()
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
            f'locks_dir "{self.folder}"',
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
        self._config = self.folder / "odyssey.conf"
        self._config.write_text("\n".join([*lines, ""]))
        self.start()

    def command(self) -> list[str]:
        assert PROGRAM is not None
        return [PROGRAM, str(self._config)]


def _written(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value) if isinstance(value, int) else f'"{value}"'
