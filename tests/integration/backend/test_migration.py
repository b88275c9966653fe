"""The settings and the tables of docs/migration.md, tried and compared with what they speak of."""

from __future__ import annotations

import ast
import inspect
import re
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import psycopg_pool
import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db import connections
from django.db.backends.signals import connection_created

from django_pooled.backend.options import parse
from django_pooled.base import DatabaseWrapper
from django_pooled.pool.options import PoolOptions

if TYPE_CHECKING:
    from embedded_postgres import EmbeddedServer
    from tests.support.pools import MakeDatabase

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "migration.md").read_text()
SECTIONS = {
    part.partition("\n")[0]: part for part in PAGE.split("\n## ")[1:] if "```python" in part
}
NATIVE = "Django's own pool"
MAX_AGE = "`CONN_MAX_AGE`"
ENGINES = {
    NATIVE: "django.db.backends.postgresql",
    MAX_AGE: "django.db.backends.postgresql",
    "dj_db_conn_pool": "dj_db_conn_pool.backends.postgresql",
    "django-db-geventpool": "django_db_geventpool.backends.postgresql_psycopg3",
}
DEFAULTS = {field.name: field.default for field in fields(PoolOptions)}


def snippet(section: str, when: str) -> dict[str, Any]:
    """Return the entry of DATABASES that a section shows for "before" or "after" the move."""
    [code] = re.findall(rf"```python\n# {when}\n(.*?)```", SECTIONS[section], re.DOTALL)
    [assignment] = ast.parse(code).body
    assert isinstance(assignment, ast.Assign)
    entry: dict[str, Any] = ast.literal_eval(assignment.value)["default"]
    return entry


def rows(section: str) -> list[list[str]]:
    """Return the cells of a section's table, without its heading."""
    lines = [line for line in SECTIONS[section].splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[1:]]


def with_defaults(cell: str) -> dict[str, str]:
    """Return the names in a cell, each with what stands in parentheses behind it."""
    return {name: value or "" for name, value in re.findall(r"`(\w+)`(?: \(([^)]*)\))?", cell)}


def place(server: EmbeddedServer, make_database: MakeDatabase, entry: dict[str, Any]) -> str:
    """Make an alias of an entry, whose address is that of a server here."""
    alias = make_database(server)
    here = {**server.django_settings(), "NAME": "postgres"}
    connections.settings[alias] = {
        **connections.settings[alias],
        "OPTIONS": {},
        **entry,
        **here,
    }
    return alias


def ask(alias: str) -> Any:
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT 42")
        return cursor.fetchone()[0]


def test_the_page_goes_through_every_pool() -> None:
    assert set(SECTIONS) == set(ENGINES)


@pytest.mark.parametrize("section", ENGINES)
def test_settings_before_the_move_are_the_other_pool_s(section: str) -> None:
    assert snippet(section, "before")["ENGINE"] == ENGINES[section]


@pytest.mark.parametrize("section", [NATIVE, MAX_AGE])
def test_settings_of_django_s_own_engine_work_before_the_move(
    section: str, server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    alias = place(server, make_database, snippet(section, "before"))
    assert ask(alias) == 42
    connections[alias].close()
    if section == NATIVE:
        assert isinstance(connections[alias].pool, psycopg_pool.ConnectionPool)  # type: ignore[attr-defined]
        connections[alias].close_pool()  # type: ignore[attr-defined]


@pytest.mark.parametrize("section", ENGINES)
def test_settings_after_the_move_are_pooled_as_they_say(
    section: str, server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    entry = snippet(section, "after")
    assert entry["ENGINE"] == "django_pooled"
    alias = place(server, make_database, entry)
    assert ask(alias) == 42
    wrapper = connections[alias]
    assert isinstance(wrapper, DatabaseWrapper)
    assert wrapper.pool is not None
    for option, value in entry["OPTIONS"]["pool"].items():
        assert getattr(wrapper.pool.options, option) == value


def test_of_settings_for_django_s_own_pool_only_the_engine_changes() -> None:
    before, after = snippet(NATIVE, "before"), snippet(NATIVE, "after")
    assert parse("default", before) == parse("default", after)


@pytest.mark.parametrize(
    ("section", "words"),
    [
        (MAX_AGE, "'max_lifetime'"),
        ("dj_db_conn_pool", "'max_size' for POOL_SIZE plus MAX_OVERFLOW"),
        ("django-db-geventpool", "OPTIONS['pool']['max_size']"),
    ],
)
def test_what_is_left_of_the_other_pool_s_settings_is_refused(
    section: str, words: str, server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    left = {**snippet(section, "before"), "ENGINE": "django_pooled"}
    alias = place(server, make_database, left)
    with pytest.raises(ImproperlyConfigured) as refused:
        ask(alias)
    assert words in str(refused.value)


@pytest.mark.parametrize("section", ENGINES)
def test_the_tables_name_options_that_exist_with_their_defaults(section: str) -> None:
    found = [with_defaults(here) for _, here, _ in rows(section)]
    assert any(found)
    for names in found:
        for name, value in names.items():
            assert name in {"pool", *DEFAULTS}
            if value and name not in ("name", "reset"):
                assert value == str(DEFAULTS[name])


def test_every_argument_of_psycopg_pool_is_in_the_table_with_its_default() -> None:
    there = [with_defaults(there) for there, _, _ in rows(NATIVE)]
    documented = {name: value for names in there for name, value in names.items()}
    parameters = inspect.signature(psycopg_pool.ConnectionPool.__init__).parameters
    assert set(parameters) - {"self"} <= set(documented)
    for name, value in documented.items():
        if name in parameters and re.fullmatch(r"[\d.]+", value):
            assert value == str(parameters[name].default)


@pytest.mark.parametrize("option", ["configure", "kwargs", "open", "conninfo", "close_returns"])
def test_what_the_table_calls_refused_is_refused(option: str) -> None:
    entry = {"OPTIONS": {"pool": {option: None}}}
    with pytest.raises(ImproperlyConfigured, match="expected nothing here"):
        parse("default", entry)


def test_code_finds_psycopg_s_own_connection_and_a_signal_at_each_checkout(
    server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    alias = place(server, make_database, snippet(NATIVE, "after"))
    created: list[Any] = []

    def note(connection: Any, **arguments: Any) -> None:
        created.append(connection.alias)

    connection_created.connect(note)
    try:
        for _ in range(3):
            ask(alias)
            assert isinstance(connections[alias].connection, psycopg.Connection)
            connections[alias].close()
    finally:
        connection_created.disconnect(note)
    assert created == [alias] * 3


def test_numbers_of_psycopg2_s_isolation_levels_mean_something_else() -> None:
    # psycopg2.extensions.ISOLATION_LEVEL_SERIALIZABLE is 3.
    assert psycopg.IsolationLevel(3) is psycopg.IsolationLevel.REPEATABLE_READ
