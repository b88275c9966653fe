from __future__ import annotations

from django.db import migrations, models
from django.db.models.functions import Now


class Migration(migrations.Migration):
    dependencies = [("django_pooled_tokens", "0001_initial")]

    operations = [
        migrations.CreateModel(
            name="IdempotencyKey",
            fields=[
                (
                    "digest",
                    models.BinaryField(max_length=32, primary_key=True, serialize=False),
                ),
                ("fingerprint", models.BinaryField(max_length=32)),
                ("token", models.UUIDField()),
                ("status", models.PositiveSmallIntegerField(null=True)),
                ("headers", models.JSONField(null=True)),
                ("body", models.BinaryField(null=True)),
                ("created_at", models.DateTimeField(db_default=Now())),
                ("expires_at", models.DateTimeField(db_index=True)),
            ],
            options={"db_table": "django_pooled_idempotency_key"},
        ),
    ]
