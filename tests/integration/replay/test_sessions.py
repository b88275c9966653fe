from __future__ import annotations

import contextlib
import json
import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

import pytest
from asgiref.sync import async_to_sync
from django.contrib import messages
from django.contrib.auth import login, logout, update_session_auth_hash
from django.contrib.auth.models import User
from django.contrib.sessions.backends.base import UpdateError
from django.contrib.sessions.backends.file import SessionStore as FileStore
from django.contrib.sessions.models import Session
from django.core.cache import cache
from django.core.cache.backends.locmem import LocMemCache
from django.db import OperationalError, connection
from django.http import HttpResponse
from django.middleware.csrf import get_token
from django.test import Client, RequestFactory
from django.urls import path

from django_pooled import retry_transaction
from django_pooled.testing import fail_next_transaction
from tests.support.attempts import QUICK, attempts, fail_with, retried

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from embedded_postgres import EmbeddedServer
    from tests.support.pools import MakeDatabase

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.urls("tests.integration.replay.test_sessions"),
    pytest.mark.usefixtures("attempts", "site"),
]

ENGINES = ["db", "cached_db", "cache", "file", "signed_cookies"]
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest, settings: Any, tmp_path: Path) -> str:
    """Where sessions are stored."""
    return store_in(request.param, settings, tmp_path)


def store_in(kind: str, settings: Any, folder: Path) -> str:
    settings.SESSION_ENGINE = f"django.contrib.sessions.backends.{kind}"
    settings.SESSION_FILE_PATH = str(folder)
    return kind


@pytest.fixture
def site(settings: Any) -> None:
    """A site with two users."""
    settings.MIDDLEWARE = MIDDLEWARE
    cache.clear()
    for name in ("ada", "grace"):
        User.objects.create_user(name)


def store() -> Any:
    from django.conf import settings

    return import_module(settings.SESSION_ENGINE).SessionStore


# What the views do with the session, by the name of the path.
def log_in(request: Any) -> None:
    login(request, User.objects.get(username="ada"))
    request.session["cart"].append("b")


def log_in_as_another(request: Any) -> None:
    login(request, User.objects.get(username="grace"))
    request.session["cart"] = ["c"]


def log_out(request: Any) -> None:
    logout(request)


def flush(request: Any) -> None:
    request.session.flush()


def cycle_key(request: Any) -> None:
    request.session.cycle_key()
    request.session["cart"] += ["b"]


def cycle_key_twice(request: Any) -> None:
    cycle_key(request)
    request.session.cycle_key()


def save(request: Any) -> None:
    request.session["cart"].append("b")
    request.session.save()


def change_in_depth(request: Any) -> None:
    request.session["deep"]["a"]["b"].append(1)
    request.session.modified = True


def change_the_user(request: Any) -> None:
    request.user.first_name += "x"
    request.user.save()


STEPS = [log_in, log_in_as_another, log_out, flush, cycle_key, cycle_key_twice, save,
         change_in_depth, change_the_user]  # fmt: skip


def state(request: Any) -> str:
    """Return all that an attempt sees of its user, in a form that does not change."""
    session = request.session
    return json.dumps(
        [session.session_key, dict(session), request.user.pk, request.user.first_name
         if request.user.pk else None, session.modified, request.META.get("CSRF_COOKIE")]
    )  # fmt: skip


def seen(step: Callable[[Any], None], look: bool) -> Callable[[Any], HttpResponse]:
    def view(request: Any) -> HttpResponse:
        if look:
            attempts.see(state(request))
        step(request)
        return HttpResponse(f"attempt {attempts.done()}")

    return view


def start(request: Any) -> HttpResponse:
    request.session.update({"cart": ["a"], "deep": {"a": {"b": []}}})
    get_token(request)
    return HttpResponse()


def start_logged_in(request: Any) -> HttpResponse:
    login(request, User.objects.get(username="ada"))
    return start(request)


def tell(request: Any) -> HttpResponse:
    messages.info(request, "new")
    if "read" in request.GET:
        attempts.see([str(message) for message in messages.get_messages(request)])
    return HttpResponse(f"attempt {attempts.done()}")


def told(request: Any) -> HttpResponse:
    return HttpResponse(",".join(str(one) for one in messages.get_messages(request)))


def before(request: Any) -> HttpResponse:
    messages.warning(request, "old")
    return HttpResponse()


def who(request: Any) -> HttpResponse:
    attempts.see(request.user.is_authenticated)
    request.session["seen"] = True
    request.session.save()
    return HttpResponse(f"attempt {attempts.done()}")


urlpatterns = [
    path("start/", start),
    path("start_logged_in/", start_logged_in),
    *[path(f"look/{step.__name__}/", retried(seen(step, True))) for step in STEPS],
    *[path(f"blind/{step.__name__}/", retried(seen(step, False))) for step in STEPS],
    path("before/", before),
    path("tell/", retried(tell)),
    path("told/", told),
    path("who/", retried(who)),
]


LOGGED_IN = [log_in, log_in_as_another, log_out, change_the_user]
CASES = [
    *[("start", step.__name__) for step in STEPS if step is not change_the_user],
    *[("start_logged_in", step.__name__) for step in LOGGED_IN],
]


@pytest.mark.parametrize("look", ["look", "blind"])
@pytest.mark.parametrize(("start", "step"), CASES)
def test_what_was_done_to_the_session_in_a_failed_attempt_is_undone(
    engine: str, start: str, step: str, look: str
) -> None:
    client, other = Client(), Client()
    for one in (client, other):
        one.get(f"/{start}/")
    first_key = client.cookies["sessionid"].value
    assert client.get(f"/{look}/{step}/").content == b"attempt 2"
    assert attempts.same or look == "blind", attempts.seen

    # As if there had been no other attempt.
    attempts.reset()
    attempts.times = 0
    assert other.get(f"/{look}/{step}/").content == b"attempt 1"
    session, expected = client.session, other.session
    assert dict(session) == dict(expected)
    if engine == "signed_cookies":
        return
    renewed = step not in ("save", "change_in_depth", "change_the_user") and not (
        step == "log_in" and start == "start_logged_in"
    )
    assert store()().exists(first_key) is not renewed
    assert ("sessionid" in client.cookies and client.cookies["sessionid"].value != "") is (
        step not in ("log_out", "flush")
    )
    rows = {"db": Session.objects.count, "cached_db": Session.objects.count}.get(engine)
    if rows is not None:
        assert rows() == (0 if step in ("log_out", "flush") else 2)
    if engine.startswith("cache"):
        kept = [key for key in cache._cache if "sessions" in key]  # type: ignore[attr-defined]
        assert len(kept) == (0 if step in ("log_out", "flush") else 2)


def test_a_session_in_a_cache_is_there_for_the_next_attempt_although_it_was_not_loaded(
    settings: Any,
) -> None:
    settings.SESSION_ENGINE = "django.contrib.sessions.backends.cache"
    client = Client()
    client.get("/start/")
    key = client.cookies["sessionid"].value
    kept: list[Any] = []

    def look() -> None:
        kept.append(store()().exists(key))
        fail_with("40001")

    attempts.fail = look
    attempts.times = 2
    assert client.get("/blind/flush/").content == b"attempt 3"
    # Each attempt has deleted it.
    assert kept == [False, False]
    assert not store()().exists(key)


class Away(LocMemCache):
    """A cache that can be lost."""

    lost = False

    def get(self, *args: Any, **kwargs: Any) -> Any:
        if self.lost:
            raise ConnectionError("the cache is away")
        return super().get(*args, **kwargs)

    def has_key(self, *args: Any, **kwargs: Any) -> bool:
        return self.get(*args, **kwargs) is not None


def test_a_session_is_put_back_for_each_of_two_attempts_around_each_other(
    settings: Any, server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    settings.SESSION_ENGINE = "django.contrib.sessions.backends.cache"
    other = make_database(server)
    session = store()()
    session["cart"] = ["a"]
    session.save()
    first_key = session.session_key

    @retry_transaction(using=other, backoff=QUICK)
    def inner(session: Any) -> None:
        session.cycle_key()
        session["cart"].append("b")

    @retried
    def outer(session: Any) -> None:
        attempts.see((session.session_key, list(session["cart"])))
        inner(session)
        session.cycle_key()
        attempts.done()

    with fail_next_transaction(using=other) as inner_fault:
        outer(session)
    assert inner_fault.struck == 1
    assert attempts.same
    assert session["cart"] == ["a", "b"]
    assert not store()().exists(first_key)
    [kept] = [key for key in cache._cache if "sessions" in key]  # type: ignore[attr-defined]
    assert kept.endswith(session.session_key)


def test_a_session_store_that_is_lost_ends_the_attempts(
    settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.SESSION_ENGINE = "django.contrib.sessions.backends.cache"
    settings.CACHES = {"default": {"BACKEND": "tests.integration.replay.test_sessions.Away"}}
    client = Client()
    client.get("/start/")

    def lose_the_cache() -> None:
        monkeypatch.setattr(Away, "lost", True)
        fail_with("40001")

    attempts.fail = lose_the_cache
    with pytest.raises(OperationalError, match="made") as failed:
        client.get("/blind/flush/")
    assert attempts.number == 1
    [note] = getattr(failed.value, "__notes__", ["the session could not be put back"])
    assert "the session could not be put back" in note


@pytest.mark.parametrize("storage", ["cookie.Cookie", "session.Session", "fallback.Fallback"])
@pytest.mark.parametrize("read", [False, True])
def test_a_message_is_shown_once(storage: str, read: bool, settings: Any) -> None:
    settings.MESSAGE_STORAGE = f"django.contrib.messages.storage.{storage}Storage"
    client = Client()
    client.get("/before/")
    assert client.get("/tell/", {"read": ""} if read else {}).content == b"attempt 2"
    assert client.get("/told/").content == (b"" if read else b"old,new")
    assert attempts.seen == ([["old", "new"]] * 2 if read else [])


def test_a_user_that_was_loaded_before_the_first_attempt_is_as_it_was(settings: Any) -> None:
    # It asks whether somebody is logged in.
    settings.MIDDLEWARE = [
        *MIDDLEWARE,
        "django.contrib.auth.middleware.LoginRequiredMiddleware",
    ]
    client = Client()
    client.force_login(User.objects.get(username="ada"))
    assert client.get("/look/change_the_user/").content == b"attempt 2"
    assert attempts.same
    assert User.objects.get(username="ada").first_name == "x"


def test_a_login_that_fails_for_good_leaves_the_session_as_it_was() -> None:
    client = Client()
    client.get("/start/")
    key = client.cookies["sessionid"].value
    attempts.times = 99
    with pytest.raises(OperationalError):
        client.get("/look/log_in/")
    assert attempts.number == 5
    assert attempts.same
    assert [session.pk for session in Session.objects.all()] == [key]
    assert not connection.in_atomic_block


@pytest.mark.parametrize("kind", ["cache", "file"])
def test_a_session_without_a_key_is_stored_by_the_attempt_that_succeeds(
    kind: str, settings: Any, tmp_path: Path
) -> None:
    store_in(kind, settings, tmp_path)
    keys: list[str] = []

    @retried
    def begin(session: Any) -> None:
        session.delete()  # Of nothing, which is no error.
        session["cart"] = ["a"]
        session.save()
        keys.append(session.session_key)
        attempts.done()

    begin(store()())
    failed, succeeded = keys
    assert not store()().exists(failed)
    assert store()(succeeded).load() == {"cart": ["a"]}


# What another request does to the session, after the attempt has and before it is restarted.
def ended(key: str) -> None:
    store()(key).flush()


def renewed(key: str) -> None:
    session = store()(key)
    session["cart"] = ["renewed"]
    session.cycle_key()


def changed(key: str) -> None:
    session = store()(key)
    session["cart"] = ["changed"]
    session.save()


def nothing(key: str) -> None:
    """Do nothing."""


def make_session(settings: Any, tmp_path: Path, engine: str) -> Any:
    """Return a session with a cart that has been loaded."""
    with contextlib.suppress(AttributeError):
        # Remembered from another test.
        del FileStore._storage_path  # type: ignore[attr-defined]
    store_in(engine, settings, tmp_path)
    made = store()()
    made["cart"] = ["a"]
    made.save()
    session = store()(made.session_key)
    assert session["cart"] == ["a"]
    return session


@pytest.mark.parametrize("elsewhere", [ended, renewed, changed, nothing])
@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize(
    ("engine", "when"),
    [
        ("cache", "amid"),
        ("file", "amid"),
        # In a table the row is locked by the attempt until that is rolled back.
        *[(engine, "between") for engine in ("cache", "file", "cached_db", "db")],
    ],
)
def test_what_others_do_to_a_session_before_it_is_restarted_stays_done(
    engine: str,
    when: str,
    asynchronous: bool,
    elsewhere: Callable[[str], None],
    settings: Any,
    tmp_path: Path,
) -> None:
    session = make_session(settings, tmp_path, engine)
    key = session.session_key

    def save_once(session: Any) -> None:
        attempts.see(list(session["cart"]))
        if attempts.number == 0:
            session["cart"].append("b")
            (async_to_sync(session.asave) if asynchronous else session.save)()
            if when == "amid":
                elsewhere(key)
        attempts.done()

    def between(seconds: float) -> None:
        if when == "between":
            elsewhere(key)

    retry_transaction(backoff=QUICK, sleep=between)(save_once)(session)
    assert attempts.same
    gone = elsewhere in (ended, renewed)
    assert store()().exists(key) is not gone
    if not gone:
        expected = ["changed"] if elsewhere is changed else ["a"]
        assert store()(key).load() == {"cart": expected}


@pytest.mark.parametrize("step", ["flush", "cycle_key", "save"])
@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("engine", ["cache", "file"])
def test_a_session_that_ended_before_the_attempt_touched_it_does_not_come_back(
    engine: str, asynchronous: bool, step: str, settings: Any, tmp_path: Path
) -> None:
    session = make_session(settings, tmp_path, engine)
    key = session.session_key

    @retried
    def end(session: Any) -> None:
        attempts.see(list(session["cart"]))
        if attempts.number == 0:
            ended(key)
            with contextlib.suppress(UpdateError):
                if asynchronous:
                    async_to_sync(getattr(session, f"a{step}"))()
                else:
                    getattr(session, step)()
        attempts.done()

    end(session)
    assert attempts.same
    assert not store()().exists(key)


@pytest.mark.parametrize("engine", ["cache", "file"])
def test_a_session_that_an_attempt_saved_and_ended_is_there_for_the_next(
    engine: str, settings: Any, tmp_path: Path
) -> None:
    store_in(engine, settings, tmp_path)
    session = store()()
    session["cart"] = ["a"]
    session.save()
    key = session.session_key

    @retried
    def end(session: Any) -> None:
        attempts.see((session.session_key, dict(session), store()(key).load()))
        session["cart"] = []
        session.save()
        session.cycle_key()
        session.flush()
        attempts.done()

    end(session)
    assert attempts.same
    assert not store()().exists(key)


def test_a_session_that_expires_before_it_is_restarted_stays_expired(
    settings: Any, tmp_path: Path
) -> None:
    session = make_session(settings, tmp_path, "file")
    key = session.session_key
    [path] = tmp_path.iterdir()

    @retried
    def touch(session: Any) -> None:
        if attempts.number == 0:
            session["cart"].append("b")
            session.save()
            os.utime(path, (0, 0))
        attempts.done()

    touch(session)
    assert attempts.number == 2
    assert list(tmp_path.iterdir()) == []
    assert store()(key).load() == {}


def test_a_password_changed_elsewhere_logs_a_restarted_request_out(settings: Any) -> None:
    settings.SESSION_ENGINE = "django.contrib.sessions.backends.cache"
    settings.SESSION_SAVE_EVERY_REQUEST = True
    client = Client()
    client.get("/start_logged_in/")
    key = client.cookies["sessionid"].value

    def change_the_password() -> None:
        user = User.objects.get(username="ada")
        user.set_password("new")
        other = RequestFactory().get("/")
        other.session, other.user = store()(key), user
        update_session_auth_hash(other, user)
        fail_with("40001")

    attempts.fail = change_the_password
    assert client.get("/who/").content == b"attempt 2"
    assert attempts.seen == [True, False]
    assert not store()().exists(key)


def test_a_session_that_an_attempt_made_is_gone_after_it(settings: Any, tmp_path: Path) -> None:
    session = make_session(settings, tmp_path, "file")

    @retried
    def renew(session: Any) -> None:
        session.cycle_key()
        # Somebody who has the new key already.
        if attempts.number == 0:
            changed(session.session_key)
        attempts.done()

    renew(session)
    assert [path.name for path in tmp_path.iterdir()] == [f"sessionid{session.session_key}"]
