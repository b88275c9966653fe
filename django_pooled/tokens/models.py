"""The table of tokens."""

from __future__ import annotations

from django.db import models
from django.db.models.functions import Now


class CommitToken(models.Model):
    """One committed transaction; of use only until its caller has been answered."""

    token = models.UUIDField(primary_key=True)
    created_at = models.DateTimeField(db_default=Now(), db_index=True)

    class Meta:
        db_table = "django_pooled_token"

    def __str__(self) -> str:
        return str(self.token)
