"""Tables of django-postgres-extra: one to upsert into, and one in partitions."""

from __future__ import annotations

from django.db import models
from psqlextra.models import PostgresModel, PostgresPartitionedModel
from psqlextra.types import PostgresPartitioningMethod


class Tally(PostgresModel):
    """A count by name."""

    name = models.CharField(max_length=100, unique=True)
    votes = models.IntegerField(default=0)

    def __str__(self) -> str:
        return self.name


class Visit(PostgresPartitionedModel):
    """A row in the partition of its day."""

    class PartitioningMeta:
        method = PostgresPartitioningMethod.RANGE
        key = ["day"]

    day = models.DateField()

    def __str__(self) -> str:
        return str(self.day)
