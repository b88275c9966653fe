"""A table whose changes django-pghistory keeps, by triggers."""

from __future__ import annotations

from typing import ClassVar

import pghistory
from django.db import models


@pghistory.track()
class Price(models.Model):
    """A price that changes."""

    amount = models.IntegerField()

    # Of itself mypy sees a manager only where the app is in its own settings.
    objects: ClassVar[models.Manager[Price]] = models.Manager()

    def __str__(self) -> str:
        return str(self.amount)
