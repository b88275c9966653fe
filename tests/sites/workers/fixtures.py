"""Fixtures: the site's database, and each of the servers for asynchronous sites."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

import pytest

from tests.sites.workers import running

if TYPE_CHECKING:
    from collections.abc import Iterator

    from embedded_postgres import EmbeddedServer


@pytest.fixture(scope="module")
def site_database(server: EmbeddedServer, request: pytest.FixtureRequest) -> Iterator[str]:
    """The address of a database with the site's tables, named as the module's NAME says."""
    with running.database(server, request.module.NAME) as url:
        yield url


@pytest.fixture(params=running.ASGI)
def asgi_server(request: pytest.FixtureRequest) -> str:
    """Each server for asynchronous sites that is installed."""
    if importlib.util.find_spec(request.param) is None:
        pytest.skip(f"{request.param} is not installed")
    return str(request.param)


@pytest.fixture
def channels_server(asgi_server: str) -> str:
    """Each of them, if Channels is installed, and what tests open websockets by."""
    pytest.importorskip("channels", reason="Channels is not installed")
    pytest.importorskip("websocket", reason="websocket-client is not installed")
    return asgi_server
