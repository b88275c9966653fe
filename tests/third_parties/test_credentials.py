"""The recipes of docs/credentials.md: each with its library, and a stand-in for the service."""

from __future__ import annotations

import itertools
import os
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import psycopg
import pytest
from django.db import close_old_connections, connections

from django_pooled import DeadlineExceeded, deadline
from tests.servers.json_answers import send_json
from tests.servers.postgresql import kill_backends
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from embedded_postgres import EmbeddedServer
    from tests.support.pools import MakeDatabase

PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "credentials.md"
UNTRIED = ("sslmode", "sslrootcert")
"""Parameters of the page that the tests' servers, without TLS, cannot have."""


def recipe(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run the file that the page shows for a function; return its names, and the settings shown."""
    code = rf"^```python\n# shop/credentials\.py: {name}\n(.*?)^```\n+"
    shown = r"^```python\n# settings.*?\n(.*?)^```"
    found = re.search(code + shown, PAGE.read_text(encoding="utf-8"), re.M | re.S)
    assert found, f"{PAGE.name} has no recipe {name!r}"
    names: dict[str, Any] = {"__name__": "shop.credentials"}
    exec(compile(found[1], f"{PAGE.name}: {name}", "exec"), names)
    settings: dict[str, Any] = eval(f"{{{found[2]}}}", names)
    return names, settings


def with_recipe(
    make_database: MakeDatabase, server: EmbeddedServer, settings: dict[str, Any], **overrides: Any
) -> str:
    """Make an alias with the settings that the page shows."""
    options: dict[str, Any] = dict(settings.get("OPTIONS", {}))
    pool: dict[str, Any] = options.pop("pool", None) or {}
    options = {name: value for name, value in options.items() if name not in UNTRIED}
    alias = make_database(server, options=options, **pool)
    found: dict[str, Any] = {
        name: settings[name] for name in ("USER", "PASSWORD") if name in settings
    }
    connections.settings[alias].update({**found, **overrides})
    return alias


def user_behind(alias: str) -> Any:
    """Return the role of a request, which has to be served."""
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT session_user::text")
        [found] = cursor.fetchone()
    close_old_connections()
    return found


def reconnected(alias: str, server: EmbeddedServer) -> Any:
    """Return the role of a request on a new connection."""
    kill_backends(server, "postgres")
    return user_behind(alias)


class Roles:
    """Roles of a server, and the passwords that it takes from them."""

    def __init__(self, server: EmbeddedServer) -> None:
        self._admin = psycopg.connect(**server.parameters("template1"), autocommit=True)
        self._made: list[str] = []
        self._lock = threading.Lock()

    def set_password(self, role: str, password: str) -> None:
        with self._lock:
            if role not in self._made:
                self._admin.execute(f'CREATE ROLE "{role}" LOGIN')
                self._made.append(role)
            quoted = password.replace("'", "''")
            self._admin.execute(f"ALTER ROLE \"{role}\" PASSWORD '{quoted}'")

    def close(self) -> None:
        for role in self._made:
            self._admin.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s", [role]
            )
            self._admin.execute(f'DROP ROLE "{role}"')
        self._admin.close()


@pytest.fixture
def roles(server: EmbeddedServer) -> Iterator[Roles]:
    made = Roles(server)
    yield made
    made.close()


class Service:
    """An HTTP server whose answers are JSON.

    Args:
        answer: Called with the path, its query and the headers; returns the answer.
    """

    def __init__(self, answer: Callable[[str, dict[str, Any], Any], object]) -> None:
        self.calls = calls = itertools.count()
        self.asked: list[str] = []
        asked = self.asked

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                next(calls)
                asked.append(self.path)
                url = urlsplit(self.path)
                send_json(self, answer(url.path, parse_qs(url.query), self.headers))

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def serving(answer: Callable[[str, dict[str, Any], Any], object]) -> Iterator[Service]:
    service = Service(answer)
    try:
        yield service
    finally:
        service.close()


# Files.


class Secret:
    """A Secret as Kubernetes mounts it: a folder for each version, and a link that is swapped."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._numbers = itertools.count()

    def write(self, username: str, password: str) -> None:
        version = self._folder / f"..version_{next(self._numbers)}"
        version.mkdir()
        # With the line's end that an editor leaves.
        (version / "username").write_text(f"{username}\n")
        (version / "password").write_text(f"{password}\n")
        data = self._folder / "..data"
        last = data.resolve() if data.exists() else None
        new = self._folder / "..data_tmp"
        new.symlink_to(version.name)
        os.replace(new, data)
        for name in ("username", "password"):
            link = self._folder / name
            if not link.is_symlink():
                link.symlink_to(f"..data/{name}")
        if last is not None:
            for name in ("username", "password"):
                (last / name).unlink()
            last.rmdir()


def test_files_that_are_rotated_are_read_as_one_version(
    server: EmbeddedServer, make_database: MakeDatabase, roles: Roles, tmp_path: Path
) -> None:
    names, settings = recipe("from_files")
    names["SECRET"] = tmp_path
    secret = Secret(tmp_path)
    for role in ("blue", "green"):
        roles.set_password(role, f"{role}-0")
    secret.write("blue", "blue-0")
    alias = with_recipe(make_database, server, settings)
    assert user_behind(alias) == "blue"
    for number in range(1, 6):
        role = ("blue", "green")[number % 2]
        roles.set_password(role, f"{role}-{number}")
        secret.write(role, f"{role}-{number}")
        assert reconnected(alias, server) == role


def test_files_that_are_swapped_all_the_time_cost_no_request(
    server: EmbeddedServer, make_database: MakeDatabase, roles: Roles, tmp_path: Path
) -> None:
    names, settings = recipe("from_files")
    names["SECRET"] = tmp_path
    secret, finished = Secret(tmp_path), threading.Event()
    for role in ("blue", "green"):
        roles.set_password(role, f"{role}-0")
    secret.write("blue", "blue-0")

    def swap() -> None:
        for role in itertools.cycle(("green", "blue")):
            if finished.is_set():
                return
            secret.write(role, f"{role}-0")

    swapping = threading.Thread(target=swap)
    alias = with_recipe(make_database, server, settings)
    swapping.start()
    try:
        seen = {reconnected(alias, server) for _ in range(20)}
    finally:
        finished.set()
        swapping.join()
    assert seen <= {"blue", "green"}


# Tokens.


def test_rds_tokens_are_passwords_for_a_quarter_of_an_hour(
    server: EmbeddedServer,
    make_database: MakeDatabase,
    roles: Roles,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("boto3", reason="boto3 is not installed")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAIOSFODNN7EXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "an example's key")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    names, settings = recipe("rds_token")
    tokens: list[str] = []

    def issued() -> str:
        # RDS itself checks the signature.
        tokens.append(names["rds_token"]())
        roles.set_password("shop", tokens[-1])
        return tokens[-1]

    alias = with_recipe(make_database, server, settings, USER="shop", PASSWORD=issued)
    assert user_behind(alias) == "shop"
    assert reconnected(alias, server) == "shop"
    [token] = tokens
    query = parse_qs(urlsplit(f"https://{token}").query)
    assert (query["Action"], query["X-Amz-Expires"]) == (["connect"], ["900"])
    # A token that the server does not take any more.
    roles.set_password("shop", "of another token")
    assert reconnected(alias, server) == "shop"
    assert len(tokens) == 2


def test_a_managed_identity_s_token_is_the_password(
    server: EmbeddedServer,
    make_database: MakeDatabase,
    roles: Roles,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("azure.identity", reason="azure-identity is not installed")
    import time

    def answer(path: str, query: dict[str, Any], headers: Any) -> object:
        assert headers["X-IDENTITY-HEADER"] == "a header"
        [resource] = query["resource"]
        assert resource == "https://ossrdbms-aad.database.windows.net"
        token = f"token-{time.monotonic_ns()}"
        roles.set_password("shop-identity", token)
        expires = str(int(time.time()) + 3600)
        return {
            "access_token": token,
            "expires_on": expires,
            "resource": resource,
            "token_type": "Bearer",
        }

    with serving(answer) as service:
        monkeypatch.setenv("IDENTITY_ENDPOINT", f"{service.address}/msi/token")
        monkeypatch.setenv("IDENTITY_HEADER", "a header")
        _, settings = recipe("azure_token")
        alias = with_recipe(make_database, server, settings)
        assert user_behind(alias) == "shop-identity"
        assert reconnected(alias, server) == "shop-identity"
        assert len(service.asked) == 1


# Leases.


def test_a_lease_s_user_and_password_are_used_together_and_shared(
    server: EmbeddedServer,
    make_database: MakeDatabase,
    roles: Roles,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("hvac", reason="hvac is not installed")
    numbers = itertools.count(1)

    def answer(path: str, query: dict[str, Any], headers: Any) -> object:
        assert path == "/v1/database/creds/shop"
        assert headers["X-Vault-Token"] == "a token"
        role = f"v-token-shop-{next(numbers)}"
        roles.set_password(role, f"password of {role}")
        return {
            "lease_id": f"database/creds/shop/{role}",
            "lease_duration": 3600,
            "renewable": True,
            "data": {"username": role, "password": f"password of {role}"},
        }

    with serving(answer) as service:
        monkeypatch.setenv("VAULT_ADDR", service.address)
        monkeypatch.setenv("VAULT_TOKEN", "a token")
        _, settings = recipe("vault_lease")
        alias = with_recipe(make_database, server, settings)
        assert user_behind(alias) == "v-token-shop-1"
        assert reconnected(alias, server) == "v-token-shop-1"
        # Vault has revoked the lease early.
        roles.set_password("v-token-shop-1", "revoked")
        assert reconnected(alias, server) == "v-token-shop-2"
        wait_until(lambda: len(service.asked) == 2)


# Connections that a library opens.


def has_lost_its_idle_connections(alias: str) -> bool:
    pool = connections[alias].pool  # type: ignore[attr-defined]
    return all(each.session.is_readable() for each in pool._pool.idle_connections)


def test_cloud_sql_s_connector_opens_the_pool_s_connections(
    server: EmbeddedServer,
    make_database: MakeDatabase,
    roles: Roles,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    reason = "cloud-sql-python-connector is not installed"
    library: Any = pytest.importorskip("google.cloud.sql.connector.connector", reason=reason)
    google: Any = pytest.importorskip("google.auth.credentials", reason=reason)
    from tests.servers.cloud_sql import CloudSQL

    class Credentials(google.Credentials):
        def refresh(self, request: object) -> None:
            self.token = "a token"

    roles.set_password("shop", "a password")
    instance = CloudSQL(server, tmp_path)
    monkeypatch.setattr(library, "SERVER_PROXY_PORT", instance.port)
    names, settings = recipe("cloud_sql")
    connector = names["Connector"](
        refresh_strategy="lazy",
        credentials=Credentials(),
        sqladmin_api_endpoint=instance.endpoint,
    )
    names["_connector"] = lambda process: connector
    try:
        alias = with_recipe(make_database, server, settings, USER="shop", PASSWORD="a password")
        assert user_behind(alias) == "shop"
        assert (instance.issued, instance.sessions) == (1, 1)
        # Lost, and the next request gets another.
        instance.cut()
        # The library's proxy passes that on in a thread of its own.
        wait_until(lambda: has_lost_its_idle_connections(alias))
        assert user_behind(alias) == "shop"
        assert (instance.issued, instance.sessions) == (1, 2)
        # The socket is gone by which a statement would be cancelled; the request still ends.
        with pytest.raises(DeadlineExceeded), deadline(0.5), connections[alias].cursor() as cursor:
            cursor.execute("SELECT pg_sleep(60)")
        close_old_connections()
        assert user_behind(alias) == "shop"
    finally:
        connections[alias].close()
        connections[alias].close_pool()  # type: ignore[attr-defined]
        connector.close()
        connector._loop.close()  # Which it leaves to the garbage collector.
        instance.close()
