"""One tally for each candidate, so that a vote only ever has to raise one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.db import migrations

if TYPE_CHECKING:
    from django.apps.registry import Apps
    from django.db.backends.base.schema import BaseDatabaseSchemaEditor


def open_tallies(apps: Apps, schema_editor: BaseDatabaseSchemaEditor) -> None:
    """Start both at nothing."""
    tally = apps.get_model("votes", "Tally")
    tally.objects.bulk_create([tally(candidate="tabs"), tally(candidate="spaces")])


class Migration(migrations.Migration):
    dependencies = [("votes", "0001_initial")]

    operations = [migrations.RunPython(open_tallies, migrations.RunPython.noop)]
