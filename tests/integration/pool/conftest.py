"""Fixtures of the pool's tests."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def no_garbage_collection() -> Iterator[None]:
    """Nothing is collected but on demand."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()
