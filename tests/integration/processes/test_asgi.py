"""Threads, streams and websockets of an ASGI site hold no connection that they do not use."""

from __future__ import annotations

from contextlib import ExitStack, closing

import pytest

from tests.sites.workers import running
from tests.support.waiting import wait_until

NAME = "asgi"


@pytest.mark.parametrize("way", ["to_thread", "insensitive", "executor"])
def test_threads_that_have_queried_leave_the_pool_to_other_requests(
    asgi_server: str, site_database: str, way: str
) -> None:
    with running.asgi(asgi_server, site_database, max_size=4, timeout=5.0) as site:
        wait_until(lambda: site.text("/health/live"))
        for _ in range(3):
            assert site.get(f"/async/threads/4/{way}") == {"answers": [0, 0, 0, 0]}
            assert site.get("/double/21")["result"] == 42
        site.at_rest()
        assert "took back" not in site.log


@pytest.mark.parametrize("pool_mode", ["session", "transaction"])
def test_websockets_hold_no_connection_between_messages(
    channels_server: str, site_database: str, pool_mode: str
) -> None:
    ways = ["orm", "channels", "asgiref", "thread", "add:n", "add by channels:n", "add in thread:n"]
    with (
        running.asgi(
            channels_server,
            site_database,
            channels=True,
            max_size=2,
            timeout=5.0,
            pool_mode=pool_mode,
        ) as site,
        ExitStack() as stack,
    ):
        wait_until(lambda: site.text("/health/live"))
        # More of them than connections, and all of them stay open.
        clients = [
            (stack.enter_context(closing(site.websocket("messages"))), ways) for _ in range(4)
        ]
        clients += [
            (stack.enter_context(closing(site.websocket("sync-messages"))), ["orm", "add:n"])
            for _ in range(4)
        ]
        for turn in range(len(ways)):
            asked = [(client, messages[turn % len(messages)]) for client, messages in clients]
            for client, message in asked:
                client.send(message)
            for client, message in asked:
                assert client.recv() == message
            site.at_rest()
        assert site.get("/double/21")["result"] == 42
        site.at_rest()
        assert "took back" not in site.log


@pytest.mark.parametrize("pool_mode", ["session", "transaction"])
def test_a_long_lived_consumer_holds_no_connection_between_two_events(
    channels_server: str, site_database: str, pool_mode: str
) -> None:
    with running.asgi(channels_server, site_database, channels=True, pool_mode=pool_mode) as site:
        wait_until(lambda: site.text("/health/live"))
        assert site.text("/channels/events/5").split() == ["0"] * 5
        site.at_rest()
        assert "took back" not in site.log


@pytest.mark.parametrize(
    ("pool_mode", "releases_streams"), [("session", True), ("transaction", False)]
)
def test_a_stream_of_events_holds_no_connection_between_two(
    asgi_server: str, site_database: str, pool_mode: str, releases_streams: bool
) -> None:
    with running.asgi(
        asgi_server, site_database, releases_streams=releases_streams, pool_mode=pool_mode
    ) as site:
        wait_until(lambda: site.text("/health/live"))
        assert site.text("/async/events/5").split() == ["0"] * 5
        site.at_rest()
        assert "took back" not in site.log


def test_more_streams_than_connections_are_served_side_by_side(site_database: str) -> None:
    with running.asgi("uvicorn", site_database, releases_streams=True, max_size=1) as site:
        # All are begun before the first is read to its end.
        streams = [site.request("/async/events/30") for _ in range(6)]
        answers = [stream.getresponse() for stream in streams]
        assert [len(answer.read().split()) for answer in answers] == [30] * 6
        for stream in streams:
            stream.close()
        site.at_rest()
        running.complains_not(site)


def test_without_the_middleware_a_stream_keeps_its_connection_in_session_mode(
    site_database: str,
) -> None:
    with running.asgi("uvicorn", site_database) as site:
        assert site.text("/async/events/3").split() == ["1"] * 3
        site.at_rest()
