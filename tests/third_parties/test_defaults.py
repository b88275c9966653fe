"""What packages do that know engines by name, as long as nobody has told them of this one."""

from __future__ import annotations

import io
from contextlib import redirect_stderr, redirect_stdout
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.third_parties.conftest import MakeSite

for package in ("cachalot", "dbbackup", "django_extensions"):
    pytest.importorskip(package, reason=f"{package} is not installed")


@pytest.fixture(scope="module")
def seen(make_site: MakeSite) -> Any:
    """What was seen in a site that has them installed, and no more."""
    apps = 'INSTALLED_APPS = [..., "cachalot", "dbbackup", "django_extensions"]'
    return make_site(settings=apps).call(look)


def test_django_extensions_refuses_what_is_for_postgresql(seen: Any) -> None:
    assert seen["reset_db"] == "Unknown database engine django_pooled"
    assert seen["drop_test_database"] == "Unknown database engine django_pooled"
    assert "only with PostgreSQL" in seen["reset_schema"]
    assert "Don't know how to handle 'django_pooled'" in seen["sqlcreate"]
    assert "dbname" not in seen["sqldsn"]


def test_django_dbbackup_writes_rows_by_djangos_serializer(seen: Any) -> None:
    assert seen["connector"] == "DjangoConnector"


def test_cachalot_caches_nothing(seen: Any) -> None:
    assert seen["cached"] == []


# What follows runs in the site.


def look() -> Any:
    from cachalot.settings import cachalot_settings
    from dbbackup.db.base import get_connector

    commands = ["drop_test_database", "reset_db", "reset_schema", "sqlcreate", "sqldsn"]
    found: dict[str, Any] = {command: outcome(command) for command in commands}
    found["connector"] = type(get_connector()).__name__
    found["cached"] = sorted(cachalot_settings.CACHALOT_DATABASES)
    return found


def outcome(command: str) -> str:
    """Return what a command of django-extensions says, if only in its error."""
    from django.core.management import CommandError, call_command

    output = io.StringIO()
    options = {} if command.startswith("sql") else {"interactive": False}
    try:
        with redirect_stdout(output), redirect_stderr(output):
            call_command(command, **options)
    except CommandError as error:
        return str(error)
    return output.getvalue()
