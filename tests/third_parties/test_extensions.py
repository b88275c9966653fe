"""django-extensions: its commands for PostgreSQL know this engine once they are told of it."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.third_parties.conftest import MakeSite
    from tests.third_parties.running import Site

pytest.importorskip("django_extensions", reason="django-extensions is not installed")


@pytest.fixture(scope="module")
def site(make_site: MakeSite) -> Site:
    """A site with its commands."""
    return make_site("django-extensions")


@pytest.fixture(scope="module")
def seen(site: Site) -> Any:
    """What its commands said and did."""
    return site.call(look)


def test_sqldsn_names_the_database(seen: Any, site: Site) -> None:
    assert f"dbname='{site.folder.name}'" in seen["sqldsn"]


def test_sqlcreate_writes_for_postgresql(seen: Any, site: Site) -> None:
    assert f"CREATE DATABASE {site.folder.name}" in seen["sqlcreate"]


def test_sqldiff_sees_what_it_sees_on_djangos_engine(seen: Any) -> None:
    assert "CREATE INDEX" not in seen["sqldiff"]
    assert "surplus" in seen["sqldiff"]
    assert seen["sqldiff"] == seen["sqldiff of Django's engine"]


def test_reset_schema_and_the_reset_of_a_database_in_use_leave_the_pool_usable(seen: Any) -> None:
    assert seen["tables"] == {"before": 1, "after reset_schema": 0, "after reset_db": 0}


def test_printed_statements_include_those_of_a_transaction_that_was_restarted(seen: Any) -> None:
    assert seen["printed"].count("INSERT INTO") == 2


def test_shell_plus_names_its_session(seen: Any) -> None:
    assert seen["session"] == "django_shell"


# What follows runs in the site.


def output_of(command: str, *arguments: str, **options: Any) -> str:
    from contextlib import redirect_stdout

    from django.core.management import call_command

    output = io.StringIO()
    with redirect_stdout(output):
        call_command(command, *arguments, stdout=output, **options)
    return output.getvalue()


def look() -> Any:
    from django.conf import settings
    from django.db import connection

    found: dict[str, Any] = {
        "sqldsn": output_of("sqldsn"),
        "sqlcreate": output_of("sqlcreate"),
    }
    output_of("migrate", verbosity=0)
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE notes_note ADD surplus text, ALTER text TYPE text")
    found["sqldiff"] = output_of("sqldiff", "notes")
    entry = settings.DATABASES["default"]
    engine, entry["ENGINE"] = entry["ENGINE"], "django.db.backends.postgresql"
    found["sqldiff of Django's engine"] = output_of("sqldiff", "notes")
    entry["ENGINE"] = engine
    found["printed"] = printed()

    tables = {"before": count_tables()}
    output_of("reset_schema", interactive=False)
    tables["after reset_schema"] = count_tables()
    output_of("migrate", verbosity=0)
    # The connection of this thread is among those that it closes.
    output_of("reset_db", interactive=False, close_sessions=True)
    connection.close()
    tables["after reset_db"] = count_tables()
    found["tables"] = tables
    output_of("drop_test_database", interactive=False)
    found["session"] = session_of_a_shell()
    return found


def session_of_a_shell() -> str:
    from django.db import connection
    from django_extensions.management.commands.shell_plus import Command

    connection.close()
    Command().set_application_name({})
    with connection.cursor() as cursor:
        cursor.execute("SELECT current_setting('application_name')")
        [name] = cursor.fetchone()
    return str(name)


def count_tables() -> int:
    from django.db import connection

    return connection.introspection.table_names().count("notes_note")


def printed() -> str:
    """Return what --print-sql of shell_plus and runserver_plus prints of a transaction."""
    from django_extensions.management.debug_cursor import monkey_patch_cursordebugwrapper

    from django_pooled import retry_transaction
    from django_pooled.testing import fail_next_transaction
    from tests.third_parties.notes.models import Note

    lines: list[str] = []

    @retry_transaction
    def write() -> None:
        Note.objects.create(text="written")

    with (
        monkey_patch_cursordebugwrapper(print_sql=True, logger=lines.append),
        fail_next_transaction("40001"),
    ):
        write()
    return re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(lines))
