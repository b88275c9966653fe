"""PostgreSQL servers for the tests, and what tests ask of them from outside."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg

from embedded_postgres import (
    VARIABLE,
    EmbeddedServer,
    all_binaries,
    find_binaries,
    major_version,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "Servers",
    "backend_count",
    "backend_pids",
    "kill_backends",
    "stopped",
    "versions",
]

#: Small, so that several servers at once are no burden.
SETTINGS = {"shared_buffers": "16MB", "max_connections": "60"}


def versions() -> list[str]:
    """Return the oldest and the newest major version to be had here.

    Where DJANGO_POOLED_POSTGRES_BIN chooses one, it is the only one.
    """
    if VARIABLE in os.environ:
        return [major_version(find_binaries(["variable"])) or "unknown"]
    found = list(all_binaries())
    return sorted({found[0], found[-1]}, key=int) if found else []


class Servers:
    """Makes servers in a temporary folder, from one template per version, and removes them."""

    def __init__(self) -> None:
        # Its own folder and not pytest's, which only its owner may enter: as root, PostgreSQL
        # runs as another user.
        is_root = sys.platform != "win32" and os.geteuid() == 0
        self.folder = Path(tempfile.mkdtemp(prefix="servers-", dir="/tmp" if is_root else None))
        if is_root:
            self.folder.chmod(0o711)
        self._servers: list[EmbeddedServer] = []
        self._templates: dict[str, EmbeddedServer] = {}

    def template(self, version: str) -> EmbeddedServer:
        """Return the server, never started, that others of this version are copied from."""
        if version not in self._templates:
            template = EmbeddedServer(
                self.folder / f"template-{version}",
                binaries=all_binaries()[version],
                durable=False,
            )
            template.prepare()
            self._templates[version] = template
        return self._templates[version]

    def make(
        self,
        version: str | None = None,
        *,
        settings: dict[str, str] | None = None,
        fresh: bool = False,
        primary: EmbeddedServer | None = None,
        **arguments: Any,
    ) -> EmbeddedServer:
        """Return a new server, not yet started.

        Args:
            version: major version; the newest by default.
            settings: server settings on top of the tests' own.
            fresh: make its data with initdb, so that it has a system identifier of its own.
            primary: make it a standby of this running server.
            arguments: more for ``EmbeddedServer``.
        """
        template = self.template(version or versions()[-1])
        source: dict[str, Any] = {} if fresh else {"template": template.folder}
        if primary is not None:
            source = {"primary": primary}
        server = EmbeddedServer(
            self.folder / f"server-{len(self._servers)}",
            binaries=primary.binaries if primary else template.binaries,
            durable=False,
            settings={**SETTINGS, **(settings or {})},
            **source,
            **arguments,
        )
        self._servers.append(server)
        return server

    def remove(self, server: EmbeddedServer) -> None:
        """End a server and delete its folder."""
        if not server.running and (server.data / "postmaster.pid").exists():
            # Killed: its shared memory would outlive it until somebody starts it again.
            with contextlib.suppress(RuntimeError):
                server.start()
        if server.running:
            server.stop("immediate")
        shutil.rmtree(server.folder, ignore_errors=True)

    def close(self) -> None:
        """Remove every server and the folder."""
        for server in self._servers:
            if server.folder.exists():
                self.remove(server)
        shutil.rmtree(self.folder, ignore_errors=True)


_ASKS = "asks for backends"
"""Which ask, so that one does not count the last one, which may still be ending."""


def _ask(server: EmbeddedServer, query: str, parameters: dict[str, Any]) -> list[Any]:
    # Through "postgres", so that the database in question can even be dropped meanwhile.
    login = {**server.parameters("postgres"), "application_name": _ASKS}
    with psycopg.connect(**login, autocommit=True) as connection:
        return [row[0] for row in connection.execute(query, parameters)]


def backend_pids(
    server: EmbeddedServer,
    database: str,
    *,
    application_name: str | None = None,
    state: str | None = None,
) -> list[int]:
    """Return the client backends of a database, except those that ask.

    Args:
        server: the server asked, directly and not through a proxy.
        database: name of the database.
        application_name: count only these; a pattern for LIKE.
        state: count only those "idle", "active", "idle in transaction", ...
    """
    return _ask(
        server,
        """
        SELECT pid FROM pg_stat_activity
        WHERE datname = %(database)s AND backend_type = 'client backend'
          AND application_name <> %(asks)s
          AND (%(name)s::text IS NULL OR application_name LIKE %(name)s)
          AND (%(state)s::text IS NULL OR state = %(state)s)
        ORDER BY backend_start
        """,
        {"database": database, "asks": _ASKS, "name": application_name, "state": state},
    )


def backend_count(
    server: EmbeddedServer,
    database: str,
    *,
    application_name: str | None = None,
    state: str | None = None,
) -> int:
    """Return how many there are; see ``backend_pids``."""
    return len(backend_pids(server, database, application_name=application_name, state=state))


def kill_backends(server: EmbeddedServer, database: str) -> int:
    """Terminate all client backends of a database, wait for their end, return how many."""
    ended = _ask(
        server,
        """
        SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity
        WHERE datname = %(database)s AND backend_type = 'client backend'
          AND application_name <> %(asks)s
        """,
        {"database": database, "asks": _ASKS},
    )
    return len(ended)


@contextlib.contextmanager
def stopped(pids: list[int]) -> Iterator[None]:
    """Have these processes stand still, so that their sockets are open and silent."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
