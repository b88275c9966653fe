"""Votes, one row each, and the tallies that are kept beside them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from django.db import connection, models
from django.db.models.functions import Now

if TYPE_CHECKING:
    from uuid import UUID


class Candidate(models.TextChoices):
    """What can be voted for."""

    TABS = "tabs", "Tabs"
    SPACES = "spaces", "Spaces"


class Receipt(NamedTuple):
    """What became of a ballot."""

    token: UUID
    candidate: str
    """What this token's vote was counted for, be it now or earlier."""
    counted: bool
    """Whether it was counted now; False for a token that had already voted."""


class VoteManager(models.Manager["Vote"]):
    """Adds the casting of a vote."""

    def cast(self, token: UUID, candidate: str) -> Receipt:
        """Count one vote, unless this token has already voted. Call it inside a transaction.

        Args:
            token: Made by the client, once for each vote it means to cast.
            candidate: A value of ``Candidate``.
        """
        # ON CONFLICT tells "counted" from "was already counted" in one statement that can't
        # fail, so the transaction needs neither a look beforehand nor a savepoint. When the
        # same token is under way in another transaction, it waits for that one's end.
        with connection.cursor() as cursor:
            cursor.execute(
                "INSERT INTO votes_vote (token, candidate) VALUES (%s, %s) "
                "ON CONFLICT (token) DO NOTHING",
                [token, candidate],
            )
            counted = cursor.rowcount == 1
        if not counted:
            return Receipt(token, self.get(token=token).candidate, counted=False)
        # Last, because everyone who votes for this candidate queues for this row until the
        # transaction ends.
        Tally.objects.filter(candidate=candidate).update(count=models.F("count") + 1)
        return Receipt(token, candidate, counted=True)


class Vote(models.Model):
    """One vote that was cast."""

    id = models.BigAutoField(primary_key=True)
    token = models.UUIDField(unique=True)
    candidate = models.CharField(max_length=6, choices=Candidate.choices)
    cast_at = models.DateTimeField(db_default=Now())

    objects = VoteManager()

    class Meta:
        constraints = [
            models.CheckConstraint(
                condition=models.Q(candidate__in=Candidate.values), name="vote_candidate_known"
            )
        ]

    def __str__(self) -> str:
        return f"{self.candidate} at {self.cast_at}"


class Tally(models.Model):
    """How many votes a candidate has; one row per candidate, made by a migration."""

    candidate = models.CharField(max_length=6, choices=Candidate.choices, primary_key=True)
    count = models.BigIntegerField(default=0)

    class Meta:
        verbose_name_plural = "tallies"

    def __str__(self) -> str:
        return f"{self.candidate}: {self.count}"
