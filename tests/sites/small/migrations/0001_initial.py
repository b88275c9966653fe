"""The tables of tests.app as they are now, and a row that tests may find or miss."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.apps import apps as installed
from django.db import migrations
from django.db.migrations.state import ModelState

if TYPE_CHECKING:
    from django.db.models import Model


def creation_of(model: type[Model]) -> migrations.CreateModel:
    state = ModelState.from_model(model)
    return migrations.CreateModel(state.name, list(state.fields.items()), state.options)


def add_row(apps: Any, schema_editor: Any) -> None:
    counters = apps.get_model("app", "Counter").objects.using(schema_editor.connection.alias)
    counters.create(name="from a migration")


class Migration(migrations.Migration):
    initial = True
    operations = [
        *[creation_of(model) for model in installed.get_app_config("app").get_models()],
        migrations.RunPython(add_row, migrations.RunPython.noop),
    ]
