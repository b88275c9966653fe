"""Where they meet: one server, spoken to with or without TLS, near or far, and PgBouncers."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import psycopg
import trustme
from _common import Engine, FaultProxy, Worker, temporary_folder

from embedded_postgres import EmbeddedServer, all_binaries, free_port
from tests.servers.certificates import versions_with_tls
from tests.support.waiting import wait_until

from .contestants import ALONE, DJANGO
from .pgbouncer import PROGRAM, PgBouncer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .contestants import Bouncer, Contestant

__all__ = ["Venue", "far_away", "opened"]


class Venue:
    """What contestants connect to, and the processes that they work in.

    Args:
        server: the server.
        tls: whether they speak TLS with it, and log in by SCRAM.
        size: most connections of each.
        proxy: what stands before the server.
    """

    def __init__(
        self, server: EmbeddedServer, *, tls: bool, size: int, proxy: FaultProxy | None = None
    ) -> None:
        self.server = server
        self.tls = tls
        self.size = size
        self.port = proxy.port if proxy else server.port
        self.absent: dict[str, str] = {}
        """Who could not take part, and why."""
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Venue:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def entry(self, who: Contestant, **more: Any) -> dict[str, Any]:
        """Return its whole entry of DATABASES."""
        entry = {**self.server.django_settings(), **who.entry(more.pop("size", self.size), **more)}
        if who.engine == ALONE:
            entry["ENGINE"] = DJANGO
        entry["PORT"] = self.port
        entry["OPTIONS"]["sslmode"] = "require" if self.tls and not who.bouncer else "disable"
        if who.bouncer:
            entry["PORT"] = self._bouncer(who.bouncer).port
            entry["DISABLE_SERVER_SIDE_CURSORS"] = True
        return entry

    def admits(self, who: Contestant) -> bool:
        """Tell whether it can take part, and note why not."""
        reason = who.missing()
        if who.bouncer and PROGRAM is None:
            reason = "pgbouncer is not installed"
        if reason is not None:
            self.absent[who.name] = reason
        return reason is None

    def worker(self, who: Contestant, **more: Any) -> Worker:
        """Start a process for it, which lives as long as the venue."""
        worker = Worker(
            Engine(who.name),
            self.entry(who, **more),
            "versus.worker",
            BENCHMARK_GEVENT="1" if who.gevent else "",
            BENCHMARK_ALONE="1" if who.engine == ALONE else "",
        )
        self._stack.callback(worker.close)
        return worker

    def workers(self, among: list[Contestant], **more: Any) -> dict[str, Worker]:
        """Start a process for each that answers a request; note why others do not."""
        started = {who.name: self.worker(who, **more) for who in among if self.admits(who)}
        for name, worker in list(started.items()):
            try:
                worker.call("cycles", count=20)
            except RuntimeError as error:
                self.absent[name] = str(error).strip().splitlines()[-1]
                del started[name]
        return started

    def on_exit(self, close: Callable[[], object]) -> None:
        """Have something closed that lives as long as the venue."""
        self._stack.callback(close)

    def _bouncer(self, mode: Bouncer) -> PgBouncer:
        # One for each: those who keep connections would leave others none of one PgBouncer's.
        bouncer = PgBouncer(self.server, self.port, mode, self.size, self.tls)
        self._stack.callback(bouncer.close)
        return bouncer


@contextlib.contextmanager
def opened() -> Iterator[EmbeddedServer]:
    """Run a server that trusts who comes in the clear, and asks for a password over TLS."""
    binaries = all_binaries()[versions_with_tls()[-1]]
    with (
        temporary_folder() as folder,
        EmbeddedServer(
            folder / "server",
            binaries=binaries,
            durable=False,
            settings={"max_connections": "600", "shared_buffers": "64MB"},
        ) as one,
    ):
        _serve_tls(one)
        yield one


@contextlib.contextmanager
def far_away(one: EmbeddedServer, delay: float) -> Iterator[FaultProxy]:
    """Put a proxy before the server that holds everything back for so long, each way."""
    with FaultProxy(one.host, one.port, listen=free_port()) as proxy:
        proxy.delay(delay)
        yield proxy


def _serve_tls(one: EmbeddedServer) -> None:
    issued = trustme.CA().issue_cert(one.host)
    for name, content in (
        ("server.crt", issued.cert_chain_pems[0].bytes()),
        ("server.key", issued.private_key_pem.bytes()),
    ):
        path = one.data / name
        path.write_bytes(content)
        path.chmod(0o600)
        one._give(path)
    rules = one.data / "pg_hba.conf"
    rules.write_text(f"hostnossl all all all trust\n{rules.read_text()}")
    with psycopg.connect(**one.parameters(), autocommit=True) as connection:
        connection.execute("ALTER SYSTEM SET ssl = 'on'")
        connection.execute("SELECT pg_reload_conf()")
    wait_until(lambda: _speaks_tls(one))


def _speaks_tls(one: EmbeddedServer) -> bool:
    with psycopg.connect(**one.parameters(), sslmode="require") as connection:
        return connection.pgconn.ssl_in_use
