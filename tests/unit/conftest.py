"""No test in here has a server: those that need one lie in ``tests/integration``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pytest_django import Settings


@pytest.fixture(scope="session")
def servers() -> None:
    pytest.fail("tests/unit starts no server: move this test to tests/integration")


@pytest.fixture
def bare_site(settings: Settings) -> Settings:
    """Settings of a site without templates, which answers any host as in production."""
    settings.DEBUG = False
    settings.TEMPLATES = []
    settings.ALLOWED_HOSTS = ["*"]
    return settings
