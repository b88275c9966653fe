"""The tables of votes and tallies."""

from __future__ import annotations

from django.db import migrations, models
from django.db.models.functions import Now

CANDIDATES = [("tabs", "Tabs"), ("spaces", "Spaces")]


class Migration(migrations.Migration):
    initial = True

    dependencies = []

    operations = [
        migrations.CreateModel(
            name="Tally",
            fields=[
                (
                    "candidate",
                    models.CharField(
                        choices=CANDIDATES, max_length=6, primary_key=True, serialize=False
                    ),
                ),
                ("count", models.BigIntegerField(default=0)),
            ],
            options={"verbose_name_plural": "tallies"},
        ),
        migrations.CreateModel(
            name="Vote",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                ("token", models.UUIDField(unique=True)),
                ("candidate", models.CharField(choices=CANDIDATES, max_length=6)),
                ("cast_at", models.DateTimeField(db_default=Now())),
            ],
            options={
                "constraints": [
                    models.CheckConstraint(
                        condition=models.Q(candidate__in=["tabs", "spaces"]),
                        name="vote_candidate_known",
                    )
                ],
            },
        ),
    ]
