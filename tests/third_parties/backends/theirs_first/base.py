"""Theirs before this engine: a mixin."""

from __future__ import annotations

from django_pooled.base import DatabaseWrapper as Pooled
from tests.third_parties.backends import theirs


class DatabaseWrapper(theirs.DatabaseWrapper, Pooled):
    """Asks theirs, then the pool, then Django."""
