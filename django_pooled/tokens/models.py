"""The tables of tokens and of idempotency keys."""

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


class IdempotencyKey(models.Model):
    """One request that took effect, and the response to it; of use until it expires."""

    digest = models.BinaryField(primary_key=True, max_length=32)
    """Of scope and key: neither is stored in clear."""
    fingerprint = models.BinaryField(max_length=32)
    """Of the request."""
    token = models.UUIDField()
    """Of the call that has made the response."""
    status = models.PositiveSmallIntegerField(null=True)
    """Null only inside the transaction that makes the response."""
    headers = models.JSONField(null=True)
    body = models.BinaryField(null=True)
    created_at = models.DateTimeField(db_default=Now())
    expires_at = models.DateTimeField(db_index=True)

    class Meta:
        db_table = "django_pooled_idempotency_key"

    def __str__(self) -> str:
        return bytes(self.digest).hex()[:12]
