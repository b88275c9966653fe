"""Which wrappers lead to the same pool."""

from __future__ import annotations

import threading
import zoneinfo
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from django.db import connections
from django.db.backends.postgresql import psycopg_any

from django_pooled.backend import parameters
from django_pooled.backend.parameters import fingerprint

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator

TOGETHER = 4


@pytest.fixture
def nothing_cached() -> Iterator[None]:
    """A process in which no thread has asked for connection parameters yet."""
    cached: Any = psycopg_any.get_adapters_template
    cached.cache_clear()
    zoneinfo.ZoneInfo.clear_cache()
    yield
    cached.cache_clear()


def keys_of_simultaneous_first_calls(settings: dict[str, Any]) -> set[Hashable]:
    begins = threading.Barrier(TOGETHER)

    def key() -> Hashable:
        wrapper = connections.create_connection("default")
        wrapper.settings_dict = {**wrapper.settings_dict, **settings}
        begins.wait(30.0)
        return fingerprint(wrapper.get_connection_params())

    with ThreadPoolExecutor(TOGETHER) as threads:
        futures = [threads.submit(key) for _ in range(TOGETHER)]
        return {future.result() for future in futures}


@pytest.mark.usefixtures("nothing_cached")
def test_threads_whose_first_calls_come_together_find_one_pool(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    register, amid = psycopg_any.register_tzloader, threading.Barrier(TOGETHER)

    def register_together(*args: Any) -> None:
        # Of Django's function that makes a map of adapters: all of them are within it.
        amid.wait(30.0)
        register(*args)

    monkeypatch.setattr(psycopg_any, "register_tzloader", register_together)
    assert len(keys_of_simultaneous_first_calls({})) == 1


@pytest.mark.usefixtures("nothing_cached")
def test_a_time_zone_that_threads_ask_for_together_makes_one_pool(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(parameters, "_zones", {})
    # As zoneinfo does for those that come together.
    monkeypatch.setattr(zoneinfo, "ZoneInfo", zoneinfo.ZoneInfo.no_cache)
    assert len(keys_of_simultaneous_first_calls({"TIME_ZONE": "Asia/Kathmandu"})) == 1


def test_other_time_zones_make_other_pools() -> None:
    keys = [keys_of_simultaneous_first_calls({"TIME_ZONE": zone}) for zone in ("UTC", "Asia/Tokyo")]
    assert [len(found) for found in keys] == [1, 1]
    assert keys[0] != keys[1]
