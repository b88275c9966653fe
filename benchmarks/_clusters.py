"""Servers of which one can write, and the two events that change which one that is."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import urllib.request
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import psycopg
from _common import EmbeddedServer, temporary_folder

from embedded_postgres import free_port
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

__all__ = ["Cluster", "Probe", "cluster"]

SYSTEM = Path("/usr/lib/postgresql")
"""Where Debian has PostgreSQL, of which Patroni needs a folder with all programs."""
TTL, LOOP_WAIT, RETRY_TIMEOUT = 10, 2, 3
"""Patroni's own, in seconds; its defaults are three times as long: 30, 10, 10."""
PATIENCE = 90.0
"""Seconds after which something that was started counts as failed."""


class Probe:
    """Asks what an address leads to, each time with a new connection.

    Args:
        address: An entry for ``DATABASES``; its options are psycopg's.
    """

    def __init__(self, address: Mapping[str, Any]) -> None:
        self.parameters = {
            **address["OPTIONS"],
            "host": address["HOST"],
            "port": address["PORT"],
            "user": address["USER"],
            "password": address["PASSWORD"],
            "dbname": address["NAME"],
            "connect_timeout": 2,
        }

    def execute(self, statement: str) -> list[tuple[Any, ...]]:
        """Run a statement, and return its rows."""
        with psycopg.connect(**self.parameters, autocommit=True) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []


class Cluster(Protocol):
    """What a benchmark sees of it."""

    words: str

    @property
    def addresses(self) -> dict[str, Any]:
        """The entry for ``DATABASES``, with every server's address."""

    def switchover(self) -> None:
        """Have another server take over, orderly."""

    def failover(self) -> None:
        """Kill the one that can write."""

    def mend(self) -> None:
        """Make it whole again, and wait until it is."""

    def close(self) -> None:
        """End all servers."""


@contextlib.contextmanager
def cluster(*, nodes: int, haproxy: bool, by_hand: bool) -> Iterator[Cluster]:
    """Start the servers in a temporary folder, and end them.

    Args:
        nodes: PostgreSQL servers under Patroni.
        haproxy: whether they have one address, which HAProxy leads to the one that can write.
        by_hand: leave Patroni out; so it is, too, where that or etcd is not installed.
    """
    missing = [name for name in ("patroni", "etcd") if shutil.which(name) is None]
    if not list(SYSTEM.glob("*/bin/initdb")):
        missing.append("postgresql")
    if missing and not by_hand:
        print(f"Not installed: {', '.join(missing)}. So the standby is promoted by hand.")
    with temporary_folder() as folder:
        alone = by_hand or missing
        made: Cluster = ByHand(folder) if alone else Patroni(folder, nodes, haproxy)
        with contextlib.closing(made):
            yield made


def several_hosts(ports: Sequence[int], user: str, password: str) -> dict[str, Any]:
    return {
        "HOST": ",".join("127.0.0.1" for _ in ports),
        "PORT": ",".join(map(str, ports)),
        "NAME": "postgres",
        "USER": user,
        "PASSWORD": password,
        "OPTIONS": {"target_session_attrs": "read-write"},
    }


class ByHand:
    """A primary and a standby; the operator promotes at once, and makes another standby."""

    words = "a primary and a standby, promoted by hand at once"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._made = 0
        self.primary = self._make()
        self.standby = self._make(primary=self.primary)
        self._synchronous()

    @property
    def addresses(self) -> dict[str, Any]:
        ports = [self.primary.port, self.standby.port]
        return several_hosts(ports, self.primary.user, self.primary.password)

    def switchover(self) -> None:
        self.primary.stop("fast")
        self._promote()

    def failover(self) -> None:
        self.primary.kill()
        self._promote()

    def mend(self) -> None:
        port = self.standby.port
        self.standby.stop("immediate")
        self.standby = self._make(primary=self.primary, port=port)
        self._synchronous()

    def close(self) -> None:
        for server in (self.standby, self.primary):
            server.stop("immediate")

    def _make(self, **arguments: Any) -> EmbeddedServer:
        self._made += 1
        settings = {"shared_buffers": "16MB"}
        place = self._folder / f"server-{self._made}"
        server = EmbeddedServer(place, settings=settings, durable=False, **arguments)
        server.start()
        return server

    def _promote(self) -> None:
        with psycopg.connect(**self.standby.parameters(), autocommit=True) as operator:
            operator.execute("SELECT pg_promote()")
        self.primary, self.standby = self.standby, self.primary

    def _synchronous(self) -> None:
        with psycopg.connect(**self.primary.parameters(), autocommit=True) as operator:
            operator.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
            operator.execute("SELECT pg_reload_conf()")


@dataclass
class Node:
    """One PostgreSQL under Patroni."""

    name: str
    folder: Path
    port: int = field(default_factory=free_port)
    api: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def postmaster(self) -> int | None:
        with contextlib.suppress(OSError, ValueError, IndexError):
            return int((self.folder / "data/postmaster.pid").read_text().split("\n")[0])
        return None


class Patroni:
    """Patroni's cluster on loopback, with one etcd; as root everything runs as "postgres"."""

    def __init__(self, folder: Path, nodes: int, haproxy: bool) -> None:
        self._folder = folder
        _give(folder)
        self._passwords = [secrets.token_urlsafe(12) for _ in range(3)]
        self._binaries = max(SYSTEM.glob("*/bin"), key=lambda path: int(path.parent.name))
        self.words = (
            f"Patroni (ttl {TTL}, loop_wait {LOOP_WAIT}) with etcd, {nodes} nodes"
            f"{', behind HAProxy' if haproxy else ''}"
        )
        self._others: list[subprocess.Popen[bytes]] = []
        self._etcd = free_port()
        self._proxy = free_port() if haproxy else None
        self.nodes = [Node(f"node{number}", folder / f"node{number}") for number in range(nodes)]
        try:
            self._start_all()
        except BaseException:
            self.close()
            raise

    @property
    def addresses(self) -> dict[str, Any]:
        if self._proxy is None:
            ports = [node.port for node in self.nodes]
            return several_hosts(ports, "postgres", self._passwords[0])
        return {**several_hosts([self._proxy], "postgres", self._passwords[0]), "OPTIONS": {}}

    @property
    def leader(self) -> Node | None:
        """The node that Patroni says is primary."""
        for member in self._members():
            if member.get("role") in ("leader", "master") and member.get("state") == "running":
                return next(node for node in self.nodes if node.name == member["name"])
        return None

    def switchover(self) -> None:
        leader = self.leader
        assert leader is not None
        request = urllib.request.Request(
            f"http://127.0.0.1:{leader.api}/switchover",
            data=json.dumps({"leader": leader.name}).encode(),
            headers={"Content-Type": "application/json"},
        )
        urllib.request.urlopen(request, timeout=60).close()

    def failover(self) -> None:
        leader = self.leader
        assert leader is not None
        assert leader.process is not None
        postmaster = leader.postmaster
        assert postmaster is not None
        leader.process.kill()
        os.kill(postmaster, signal.SIGKILL)
        leader.process.wait()

    def mend(self) -> None:
        for node in self.nodes:
            if node.process is None or node.process.poll() is not None:
                self._start(node)
        self._wait_until_whole()

    def close(self) -> None:
        for node in self.nodes:
            if node.process is not None:
                # Patroni stops its PostgreSQL before it leaves.
                node.process.terminate()
        for node in self.nodes:
            if node.process is not None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    node.process.wait(20)
                node.process.kill()
                node.process.wait()
            if (postmaster := node.postmaster) is not None:
                _end_postmaster(postmaster, node.folder / "data")
        for process in reversed(self._others):
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _start_all(self) -> None:
        peer = free_port()
        self._others.append(
            self._run(
                *("etcd", "--name=only", f"--data-dir={self._folder / 'etcd'}"),
                f"--listen-client-urls=http://127.0.0.1:{self._etcd}",
                f"--advertise-client-urls=http://127.0.0.1:{self._etcd}",
                f"--listen-peer-urls=http://127.0.0.1:{peer}",
                f"--initial-advertise-peer-urls=http://127.0.0.1:{peer}",
                f"--initial-cluster=only=http://127.0.0.1:{peer}",
            )
        )
        wait_until(lambda: _listens(self._etcd), PATIENCE, "etcd")
        for node in self.nodes:
            node.folder.mkdir(mode=0o700)
            _give(node.folder)
            self._configure(node)
            self._start(node)
            wait_until(lambda: self.leader, PATIENCE, "a leader")
        if self._proxy is not None:
            self._others.append(self._start_haproxy(self._proxy))
        self._wait_until_whole()

    def _members(self) -> list[dict[str, Any]]:
        for node in self.nodes:
            with contextlib.suppress(OSError, ValueError):
                url = f"http://127.0.0.1:{node.api}/cluster"
                with urllib.request.urlopen(url, timeout=2) as answer:
                    return list(json.load(answer)["members"])
        return []

    def _wait_until_whole(self) -> None:
        def whole() -> bool:
            members = self._members()
            roles = Counter(member.get("role") for member in members)
            running = all(member["state"] in ("running", "streaming") for member in members)
            return len(members) == len(self.nodes) and running and roles["sync_standby"] == 1

        wait_until(whole, PATIENCE, "all nodes are there and one is synchronous")

    def _configure(self, node: Node) -> None:
        superuser, replication, rewind = self._passwords
        loopback = "127.0.0.1/32"
        configuration = {
            "scope": "benchmark",
            "name": node.name,
            "restapi": {
                "listen": f"127.0.0.1:{node.api}",
                "connect_address": f"127.0.0.1:{node.api}",
            },
            "etcd3": {"hosts": f"127.0.0.1:{self._etcd}"},
            "bootstrap": {
                "dcs": {
                    "ttl": TTL,
                    "loop_wait": LOOP_WAIT,
                    "retry_timeout": RETRY_TIMEOUT,
                    "synchronous_mode": True,
                    "postgresql": {"use_pg_rewind": True, "use_slots": True},
                },
                "initdb": [{"encoding": "UTF8"}, {"locale": "C.UTF-8"}, "no-sync"],
            },
            "postgresql": {
                "listen": f"127.0.0.1:{node.port}",
                "connect_address": f"127.0.0.1:{node.port}",
                "data_dir": str(node.folder / "data"),
                "bin_dir": str(self._binaries),
                "pgpass": str(node.folder / "pgpass"),
                "authentication": {
                    "superuser": {"username": "postgres", "password": superuser},
                    "replication": {"username": "replicator", "password": replication},
                    "rewind": {"username": "rewinder", "password": rewind},
                },
                "parameters": {
                    "shared_buffers": "16MB",
                    "max_connections": 100,
                    "fsync": "off",
                    "unix_socket_directories": "",
                },
                "pg_hba": [
                    f"host all all {loopback} scram-sha-256",
                    f"host replication all {loopback} scram-sha-256",
                ],
            },
        }
        # JSON is YAML, too.
        path = node.folder / "patroni.yml"
        path.write_text(json.dumps(configuration))
        _give(path)

    def _start(self, node: Node) -> None:
        node.process = self._run("patroni", str(node.folder / "patroni.yml"), log=node.name)

    def _start_haproxy(self, port: int) -> subprocess.Popen[bytes]:
        servers = "\n".join(
            f"  server {node.name} 127.0.0.1:{node.port} check port {node.api}"
            for node in self.nodes
        )
        path = self._folder / "haproxy.cfg"
        path.write_text(
            "defaults\n  mode tcp\n  timeout connect 2s\n  timeout client 1h\n  timeout server 1h\n"
            f"listen primary\n  bind 127.0.0.1:{port}\n  option httpchk GET /primary\n"
            "  http-check expect status 200\n"
            "  default-server inter 1s fall 2 rise 1 on-marked-down shutdown-sessions\n"
            f"{servers}\n"
        )
        path.chmod(0o644)
        return self._run("haproxy", "-db", "-f", str(path))

    def _run(self, program: str, *arguments: str, log: str = "") -> subprocess.Popen[bytes]:
        user: dict[str, Any] = {}
        if os.geteuid() == 0:
            user = {"user": "postgres", "group": "postgres", "extra_groups": []}
        with (self._folder / f"{log or program}.log").open("ab") as output:
            return subprocess.Popen(
                [program, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=self._folder,
                env={"PATH": f"{os.environ['PATH']}:/usr/sbin", "LC_ALL": "C"},
                start_new_session=True,
                **user,
            )


def _give(path: Path) -> None:
    if os.geteuid() == 0:
        entry = pwd.getpwnam("postgres")
        os.chown(path, entry.pw_uid, entry.pw_gid)


def _end_postmaster(pid: int, data: Path) -> None:
    """End a server that Patroni has left behind, if that pid is still its own."""
    with contextlib.suppress(OSError):
        if Path(f"/proc/{pid}/cwd").resolve(strict=True) == data.resolve():
            os.kill(pid, signal.SIGQUIT)
            wait_until(lambda: not Path(f"/proc/{pid}").exists(), PATIENCE, f"the end of {pid}")


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
