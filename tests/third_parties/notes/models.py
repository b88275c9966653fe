"""What the sites write."""

from __future__ import annotations

from typing import ClassVar

from django.db import models


class Note(models.Model):
    """A row that shows who wrote it, and how often."""

    text = models.CharField(max_length=100)

    # Of itself mypy sees a manager only where the app is in its own settings.
    objects: ClassVar[models.Manager[Note]] = models.Manager()

    def __str__(self) -> str:
        return self.text
