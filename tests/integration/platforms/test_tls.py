"""Servers that let nobody in without TLS, and certificates that nobody can verify."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from django.db import connections

from django_pooled.errors import ConnectFailed
from tests.servers.certificates import Certificates, versions_with_tls

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from embedded_postgres import EmbeddedServer
    from tests.support.pools import MakeDatabase

pytestmark = pytest.mark.skipif(
    not versions_with_tls(), reason="no PostgreSQL here was built with OpenSSL"
)


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return Certificates(tmp_path)


@pytest.fixture
def strict_server(
    make_server: Callable[..., EmbeddedServer], certificates: Certificates
) -> EmbeddedServer:
    """As RDS with rds.force_ssl, and Azure with require_secure_transport: hostssl alone."""
    server = make_server(versions_with_tls()[-1])
    certificates.serve(server, "unused")
    rules = server.data / "pg_hba.conf"
    rules.write_text("hostssl all all all scram-sha-256\n")
    with psycopg.connect(**server.parameters(), sslmode="require", autocommit=True) as admin:
        admin.execute("SELECT pg_reload_conf()")
    return server


def is_encrypted(alias: str) -> Any:
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
        [found] = cursor.fetchone()
    connections[alias].close()
    return found


@pytest.mark.parametrize("sslmode", [None, "require", "verify-full"])
def test_each_mode_but_disable_is_encrypted(
    strict_server: EmbeddedServer,
    certificates: Certificates,
    make_database: MakeDatabase,
    sslmode: str | None,
) -> None:
    options = {} if sslmode is None else {"sslmode": sslmode}
    if sslmode == "verify-full":
        options["sslrootcert"] = certificates.root
    assert is_encrypted(make_database(strict_server, options=options)) is True


def test_without_tls_the_refusal_is_told_at_once(
    strict_server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    alias = make_database(strict_server, options={"sslmode": "disable"}, timeout=600.0)
    with pytest.raises(ConnectFailed, match="no encryption"):
        is_encrypted(alias)


def test_a_certificate_of_an_unknown_authority_is_refused_at_once_where_it_is_verified(
    strict_server: EmbeddedServer, certificates: Certificates, make_database: MakeDatabase
) -> None:
    options = {"sslmode": "verify-full", "sslrootcert": certificates.stranger_s_root}
    alias = make_database(strict_server, options=options, timeout=600.0)
    with pytest.raises(ConnectFailed, match="certificate verify failed"):
        is_encrypted(alias)
    # As an address that says sslmode=require has it: encrypted, and of whom is not asked.
    unverified = {"sslmode": "require"}
    assert is_encrypted(make_database(strict_server, options=unverified)) is True


def test_a_root_certificate_that_is_not_there_is_told_at_once(
    strict_server: EmbeddedServer, make_database: MakeDatabase, tmp_path: Path
) -> None:
    options = {"sslmode": "verify-full", "sslrootcert": str(tmp_path / "missing.pem")}
    alias = make_database(strict_server, options=options, timeout=600.0)
    with pytest.raises(ConnectFailed, match=r"root certificate file .*missing\.pem"):
        is_encrypted(alias)
