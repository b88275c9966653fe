"""For tests of what Python's counts of references make possible."""

from __future__ import annotations

import pytest

from django_pooled.pool.references import ALONE

__all__ = ["needs_counts"]

needs_counts = pytest.mark.skipif(
    not ALONE, reason="without the GIL each checkout has a connection object of its own"
)
