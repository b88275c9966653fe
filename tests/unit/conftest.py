"""No test in here has a server: those that need one lie in ``tests/integration``."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def servers() -> None:
    pytest.fail("tests/unit starts no server: move this test to tests/integration")
