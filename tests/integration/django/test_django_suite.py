"""The comparison with Django's own engine: what it counts, and that it cannot pass by mistake."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg

from tests.django_suite.server import databases_for_tests, drop_databases

if TYPE_CHECKING:
    from embedded_postgres import EmbeddedServer


def test_a_database_that_was_made_anew_does_not_pass_for_one_that_was_kept(
    server: EmbeddedServer,
) -> None:
    oids = []
    with psycopg.connect(**server.parameters("postgres"), autocommit=True) as connection:
        for _ in range(2):
            connection.execute("CREATE DATABASE test_kept")
            oids.append(databases_for_tests(server)["test_kept"])
            drop_databases(server, ["test_kept"])
    assert oids[0] != oids[1]
    assert "test_kept" not in databases_for_tests(server)
