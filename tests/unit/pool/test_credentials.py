from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from django.core.exceptions import ImproperlyConfigured

from django_pooled.pool import credentials as module
from django_pooled.pool.connect_errors import AttemptHung
from django_pooled.pool.credentials import KeptCredentials
from django_pooled.pool.time_limit import LeftBehind
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

LONG = 600.0


class Service:
    """Issues a new token with each call."""

    def __init__(self) -> None:
        self.calls = self.at_once = self.most_at_once = 0
        self.error: BaseException | None = None
        self.answers = threading.Event()
        self.answers.set()
        self._lock = threading.Lock()

    def __call__(self) -> dict[str, Any]:
        with self._lock:
            self.calls += 1
            number = self.calls
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            assert self.answers.wait(60)
            if self.error is not None:
                raise self.error
            return {"password": f"token {number}"}
        finally:
            with self._lock:
                self.at_once -= 1


@pytest.fixture
def service() -> Service:
    return Service()


@pytest.fixture
def keep(service: Service) -> Callable[..., KeptCredentials]:
    def keep(lifetime: float = LONG, limit: float = LONG) -> KeptCredentials:
        return KeptCredentials("shop", service, lifetime, limit, LeftBehind(2, LONG))

    return keep


def token(credentials: KeptCredentials) -> str:
    return str(credentials()["password"])


def make_old(credentials: KeptCredentials) -> None:
    assert credentials._kept is not None
    credentials._kept = credentials._kept._replace(due_at=0.0, until=0.0)


def test_credentials_are_kept_for_their_lifetime(
    service: Service, keep: Callable[..., KeptCredentials]
) -> None:
    kept = keep()
    assert [token(kept) for _ in range(3)] == ["token 1"] * 3
    make_old(kept)
    assert [token(kept) for _ in range(3)] == ["token 2"] * 3


def test_one_call_serves_all_that_wait(
    service: Service, keep: Callable[..., KeptCredentials]
) -> None:
    kept = keep()
    service.answers.clear()
    with ThreadPoolExecutor(8) as threads:
        tokens = [threads.submit(token, kept) for _ in range(8)]
        wait_until(lambda: service.calls > 0)
        service.answers.set()
        assert {each.result(10) for each in tokens} == {"token 1"}
    assert service.calls == 1


def test_a_call_that_hangs_is_given_up_and_overtaken(
    service: Service, keep: Callable[..., KeptCredentials]
) -> None:
    kept = keep(limit=0.1)
    service.answers.clear()
    with pytest.raises(AttemptHung, match="waiting for the credentials"):
        token(kept)
    service.answers.set()
    assert token(kept) == "token 2"
    # The first one ends now, and what it brings is older.
    wait_until(lambda: service.at_once == 0)
    assert token(kept) == "token 2"


def test_while_a_call_hangs_the_last_credentials_are_used_without_a_wait(
    service: Service,
    keep: Callable[..., KeptCredentials],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    kept = keep()
    token(kept)
    make_old(kept)
    service.answers.clear()
    with caplog.at_level(logging.WARNING, "django_pooled.pool"):
        assert token(kept) == "token 1"
        began = time.monotonic()
        assert [token(kept) for _ in range(20)] == ["token 1"] * 20
    assert time.monotonic() - began < module.PATIENCE
    assert service.calls == 2
    assert len(caplog.records) == 1
    service.answers.set()
    wait_until(lambda: token(kept) == "token 2")


def test_while_calls_fail_the_last_credentials_are_used_until_they_are_refused(
    service: Service, keep: Callable[..., KeptCredentials]
) -> None:
    kept = keep()
    last = kept()
    make_old(kept)
    service.error = OSError("503 from the metadata server")
    assert token(kept) == "token 1"
    assert kept.refused(last, since=time.monotonic()) is True
    with pytest.raises(OSError, match="503"):
        token(kept)


def test_a_mistake_in_the_callable_is_told_also_where_there_are_old_credentials(
    service: Service, keep: Callable[..., KeptCredentials]
) -> None:
    kept = keep()
    token(kept)
    make_old(kept)
    service.error = ImproperlyConfigured("no region")
    with pytest.raises(ImproperlyConfigured):
        token(kept)


def test_each_call_after_one_that_failed_is_another(
    service: Service, keep: Callable[..., KeptCredentials]
) -> None:
    kept = keep()
    service.error = OSError("down")
    for _ in range(3):
        with pytest.raises(OSError, match="down"):
            token(kept)
    service.error = None
    assert token(kept) == "token 4"


def test_refused_credentials_are_forgotten_once(
    service: Service, keep: Callable[..., KeptCredentials]
) -> None:
    kept = keep()
    stale = kept()
    began = time.monotonic()
    assert kept.refused(stale, since=began) is True
    assert token(kept) == "token 2"
    # Another attempt with the stale ones was refused a moment later: the new ones stay.
    assert kept.refused(stale, since=began) is True
    assert token(kept) == "token 2"


def test_credentials_that_were_fetched_for_the_attempt_are_not_asked_for_twice(
    service: Service, keep: Callable[..., KeptCredentials]
) -> None:
    kept = keep()
    began = time.monotonic()
    assert kept.refused(kept(), since=began) is False
    assert token(kept) == "token 2"


def test_a_call_from_before_the_refusal_is_not_joined(
    service: Service, keep: Callable[..., KeptCredentials]
) -> None:
    kept = keep()
    stale = kept()
    make_old(kept)
    service.answers.clear()
    with ThreadPoolExecutor(2) as threads:
        ahead = threads.submit(kept.fetch_ahead)
        wait_until(lambda: service.calls == 2)
        kept.refused(stale, since=time.monotonic())
        fresh = threads.submit(token, kept)
        wait_until(lambda: service.calls == 3)
        service.answers.set()
        assert fresh.result(10) == "token 3"
        ahead.result(10)
    assert token(kept) == "token 3"


def test_they_are_fetched_ahead_once_three_quarters_have_passed(
    service: Service, keep: Callable[..., KeptCredentials]
) -> None:
    kept = keep()
    token(kept)
    assert 0.6 * LONG < kept.fetch_ahead() <= 0.8 * LONG
    assert service.calls == 1
    assert kept._kept is not None
    kept._kept = kept._kept._replace(due_at=0.0)
    assert 0.6 * LONG < kept.fetch_ahead() <= 0.8 * LONG
    assert token(kept) == "token 2"


def test_those_that_no_connection_has_asked_for_are_not_fetched_ahead(
    service: Service, keep: Callable[..., KeptCredentials]
) -> None:
    kept = keep()
    kept.fetch_ahead()
    assert service.calls == 0
    token(kept)
    make_old(kept)
    kept._is_used = False
    kept.fetch_ahead()
    assert service.calls == 1


@pytest.mark.parametrize("error", [OSError("503"), SystemExit(3)])
def test_a_failure_ahead_is_tried_again_soon(
    service: Service, keep: Callable[..., KeptCredentials], error: BaseException
) -> None:
    kept = keep()
    token(kept)
    assert kept._kept is not None
    kept._kept = kept._kept._replace(due_at=0.0)
    service.error = error
    assert kept.fetch_ahead() <= 10.0
    assert token(kept) == "token 1"
