"""Fixtures for processes that publish their pools."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.support.publisher import Publisher

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture
def make_publisher(stats_dir: Path) -> Iterator[Callable[..., Publisher]]:
    """Start processes that publish there, and take orders."""
    mine: list[Publisher] = []

    def make(*pools: dict[str, Any], **arguments: Any) -> Publisher:
        mine.append(Publisher(stats_dir, *pools, **arguments))
        return mine[-1]

    yield make
    for publisher in mine:
        publisher.close()
