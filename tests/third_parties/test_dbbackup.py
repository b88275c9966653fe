"""django-dbbackup: backups by pg_dump and pg_restore, while pools are open."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.third_parties.conftest import MakeSite

pytest.importorskip("dbbackup", reason="django-dbbackup is not installed")

SETTINGS = """
import os
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.InMemoryStorage"},
    "dbbackup": {
        "BACKEND": "django.core.files.storage.FileSystemStorage",
        "OPTIONS": {"location": os.path.join(os.path.dirname(__file__), "backups")},
    },
}
"""


@pytest.fixture(scope="module")
def seen(make_site: MakeSite) -> Any:
    """What was seen in a site that makes and restores a backup."""
    return make_site("django-dbbackup", SETTINGS).call(look)


def test_the_connector_is_postgresqls(seen: Any) -> None:
    assert seen["connector"] == "PgDumpBinaryConnector"
    assert any(name.endswith(".psql.bin") for name in seen["files"])


def test_a_restore_brings_rows_back_while_connections_are_idle_in_the_pool(seen: Any) -> None:
    assert seen["rows"] == {"backed up": ["kept"], "changed": ["new"], "restored": ["kept"]}
    assert seen["connects"] == 2


def test_a_backup_of_djangos_engine_is_refused_for_its_metadata_and_restored_without(
    seen: Any,
) -> None:
    assert "different database engine" in seen["refusal"]
    assert seen["restored without metadata"] == ["kept"]


# What follows runs in the site.


def look() -> Any:
    import threading
    from pathlib import Path

    from dbbackup.db.base import get_connector
    from django.conf import settings
    from django.core.management import CommandError, call_command
    from django.db import connections

    from django_pooled import registry
    from tests.third_parties.notes.models import Note

    def texts() -> list[str]:
        return list(Note.objects.order_by("id").values_list("text", flat=True))

    def restore() -> None:
        call_command("dbrestore", interactive=False, verbosity=0)

    call_command("migrate", verbosity=0)
    Note.objects.create(text="kept")
    rows = {"backed up": texts()}
    call_command("dbbackup", verbosity=0)
    Note.objects.update(text="new")
    rows["changed"] = texts()

    # Another connection that has used the table, and goes back.
    def visit() -> None:
        texts()
        connections.close_all()

    thread = threading.Thread(target=visit)
    thread.start()
    thread.join()
    restore()
    rows["restored"] = texts()
    folder = Path(settings.STORAGES["dbbackup"]["OPTIONS"]["location"])
    found: dict[str, Any] = {
        "rows": rows,
        "connector": type(get_connector()).__name__,
        "files": [path.name for path in folder.iterdir()],
    }
    [pool] = registry.snapshots()
    found["connects"] = pool.counters.connects

    [metadata] = folder.glob("*.metadata")
    text = metadata.read_text(encoding="utf-8")
    assert '"django_pooled"' in text
    metadata.write_text(text.replace("django_pooled", "django.db.backends.postgresql"))
    try:
        restore()
    except CommandError as error:
        found["refusal"] = str(error)
    metadata.unlink()
    Note.objects.update(text="newer")
    restore()
    found["restored without metadata"] = texts()
    return found
