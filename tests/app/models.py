"""The tables that tests count and write in."""

from __future__ import annotations

import uuid

from django.db import models


class Counter(models.Model):
    """A number that transactions compete for."""

    name = models.CharField(max_length=100, unique=True)
    value = models.IntegerField(default=0)

    def __str__(self) -> str:
        return f"{self.name}: {self.value}"


class Note(models.Model):
    """A row that shows whether, and how often, something took effect."""

    text = models.TextField()
    key = models.UUIDField(default=uuid.uuid4, unique=True)

    def __str__(self) -> str:
        return self.text


class Ballot(models.Model):
    """A row with a relation, a document and a file."""

    counter = models.ForeignKey(Counter, models.CASCADE, null=True)
    data = models.JSONField(default=dict)
    paper = models.FileField(blank=True)

    def __str__(self) -> str:
        return f"ballot {self.pk}"
