"""HAProxy before servers, and what it asks for their roles in place of Patroni, for the tests."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import threading
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg

from embedded_postgres import free_port

if TYPE_CHECKING:
    from embedded_postgres import EmbeddedServer

__all__ = ["PROGRAM", "HAProxy", "RoleAPI"]

PROGRAM = shutil.which("haproxy", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")


class RoleAPI:
    """Answers GET /primary with 200 while its server is one, as Patroni does, else with 503."""

    withdrawn = False
    """Whether it says that its server is none, whatever that says."""

    def __init__(self, server: EmbeddedServer) -> None:
        parameters = server.parameters("postgres")
        roles = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200 if not roles.withdrawn and is_primary(parameters) else 503)
                self.end_headers()

            def log_request(self, *args: object) -> None:
                """Say nothing."""

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._http.server_port
        self._thread = threading.Thread(target=self._http.serve_forever, daemon=True)

    def __enter__(self) -> RoleAPI:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


def is_primary(parameters: dict[str, Any]) -> bool:
    try:
        with psycopg.connect(**{**parameters, "connect_timeout": 1}) as connection:
            return connection.execute("SELECT pg_is_in_recovery()").fetchone() == (False,)
    except psycopg.Error:
        return False


class HAProxy:
    """One process, before servers of which it uses those that are fit.

    Args:
        servers: Those that it leads to.
        by_role: Whether it asks each one's `RoleAPI` who is the primary; else any that accepts
            connections will do.
        idle: Its ``timeout client`` and ``timeout server``.
        on_marked_down: What becomes of the connections to a server that is fit no more.
        server_options: More for each line ``server``.
        options: More lines.
    """

    host = "127.0.0.1"

    def __init__(
        self,
        *servers: EmbeddedServer,
        by_role: bool = False,
        idle: str = "1h",
        on_marked_down: str = "on-marked-down shutdown-sessions",
        server_options: str = "",
        options: tuple[str, ...] = (),
    ) -> None:
        self.port = free_port()
        self._folder = Path(tempfile.mkdtemp(prefix="haproxy-", dir="/tmp"))
        self._stack = ExitStack()
        self._stack.callback(shutil.rmtree, self._folder)
        checks = ["option httpchk GET /primary", "http-check expect status 200"] if by_role else []
        self.roles = [self._stack.enter_context(RoleAPI(each)) for each in servers if by_role]
        lines = [
            "defaults",
            "mode tcp",
            "timeout connect 2s",
            f"timeout client {idle}",
            f"timeout server {idle}",
            "listen shop",
            f"bind {self.host}:{self.port}",
            *checks,
            *options,
            f"default-server inter 100ms fall 2 rise 1 {on_marked_down}",
        ]
        for number, server in enumerate(servers):
            ask = f"port {self.roles[number].port}" if by_role else ""
            where = f"{server.host}:{server.port}"
            lines.append(f"server s{number} {where} check {ask} {server_options}")
        self._config = self._folder / "haproxy.cfg"
        self._config.write_text("\n".join([*lines, ""]))

    def __enter__(self) -> HAProxy:
        assert PROGRAM is not None
        with (self._folder / "log").open("ab") as log:
            process = subprocess.Popen(
                [PROGRAM, "-db", "-f", str(self._config)],
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._stack.callback(process.wait)
        self._stack.callback(process.kill)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
