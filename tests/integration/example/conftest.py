from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.sites.example import new_folder, serving

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.sites.example import Site


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    """A site to look at, not to be stopped."""
    with new_folder() as path, serving(path) as running:
        yield running
