"""For tests of what is logged."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

__all__ = ["logged"]


def logged(caplog: pytest.LogCaptureFixture, event: str) -> list[str]:
    """Return the sentences of all records of an event."""
    return [
        record.getMessage() for record in caplog.records if getattr(record, "event", "") == event
    ]
