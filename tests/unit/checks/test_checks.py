"""System checks: each can fire, and each stays silent where there is nothing to say."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import psycopg_pool
import pytest
from django.conf import settings as django_settings
from django.core.management import call_command
from django.http import HttpResponse
from django.urls import include, path

from django_pooled.checks import (
    check_databases,
    check_error_handler,
    check_retried_urls,
    check_versions,
)
from django_pooled.checks.versions import OLDEST_POOL
from django_pooled.middleware import DatabaseUnavailableMiddleware
from django_pooled.urls import retry_requests

if TYPE_CHECKING:
    from collections.abc import Callable

    from django.core.checks import CheckMessage
    from django.http import HttpRequest
    from pytest_django import Settings

MIDDLEWARE = "django_pooled.middleware.DatabaseUnavailableMiddleware"
NATIVE = "django.db.backends.postgresql"


class OwnMiddleware(DatabaseUnavailableMiddleware):
    retry_after = (60, 90)


def own_handler500(request: HttpRequest) -> HttpResponse:
    return HttpResponse(status=500)


class URLs:
    """A URLconf, as include() takes a module."""

    def __init__(self, **handlers: object) -> None:
        self.urlpatterns: list[object] = []
        self.__dict__.update(handlers)


@pytest.fixture
def database(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    # Into the dict, since Django warns of every DATABASES that is replaced as a whole.
    for alias in list(django_settings.DATABASES):
        monkeypatch.delitem(django_settings.DATABASES, alias)

    def add(alias: str = "shop", engine: str = "django_pooled", **entry: Any) -> None:
        monkeypatch.setitem(django_settings.DATABASES, alias, {"ENGINE": engine, **entry})

    return add


def ids(messages: list[CheckMessage]) -> list[str]:
    for message in messages:
        assert message.hint, f"{message.id} has no hint"
    return [str(message.id).removeprefix("django_pooled.") for message in messages]


@pytest.mark.parametrize(
    "entry",
    [
        {},
        {"OPTIONS": {"pool": True}},
        {"OPTIONS": {"pool": False}},
        {"OPTIONS": {"pool": {"max_size": 4, "stats_dir": None}}},
        {"OPTIONS": {"pool": {"stats_dir": False}}},
        {"OPTIONS": {"pool": {"stats_dir": "/run/shop"}}},
        {"CONN_MAX_AGE": 0, "CONN_HEALTH_CHECKS": False},
    ],
)
def test_a_pooled_database_in_order_is_silent(
    database: Callable[..., None], entry: dict[str, Any]
) -> None:
    database(**entry)
    assert ids(check_databases()) == []


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"OPTIONS": {"pool": {"max_sise": 4}}}, "Did you mean 'max_size'?"),
        ({"OPTIONS": {"pool": {"timeout": -1}}}, "['timeout'] is -1"),
        ({"OPTIONS": {"pool": {"min_size": 5, "max_size": 4}}}, "at least min_size, 5"),
        ({"OPTIONS": {"pool": "no"}}, "['pool'] is 'no'"),
        ({"CONN_MAX_AGE": 600}, "'CONN_MAX_AGE'] is 600"),
    ],
)
def test_e001_refuses_options_that_the_pool_would_refuse(
    database: Callable[..., None], entry: dict[str, Any], words: str
) -> None:
    database(**entry)
    [message] = check_databases()
    assert ids([message]) == ["E001"]
    assert message.is_serious()
    assert words in message.msg
    assert "DATABASES['shop']" in message.msg


def test_e001_is_reported_for_each_database(database: Callable[..., None]) -> None:
    database("one", CONN_MAX_AGE=1)
    database("two")
    database("three", OPTIONS={"pool": {"max_size": 0}})
    assert ids(check_databases()) == ["E001", "E001"]


def test_w001_tells_of_health_checks_that_have_no_effect(database: Callable[..., None]) -> None:
    database(CONN_HEALTH_CHECKS=True)
    assert ids(check_databases()) == ["W001"]


def test_w002_tells_of_pool_options_that_djangos_own_pool_reads(
    database: Callable[..., None],
) -> None:
    database(engine=NATIVE, OPTIONS={"pool": {"max_size": 4}})
    assert ids(check_databases()) == ["W002"]


@pytest.mark.parametrize(
    ("engine", "entry"),
    [
        (NATIVE, {}),
        (NATIVE, {"OPTIONS": {"pool": False}, "CONN_MAX_AGE": 60, "CONN_HEALTH_CHECKS": True}),
        ("django.db.backends.sqlite3", {"OPTIONS": {"pool": True}}),
        ("shop.no_such_backend", {"OPTIONS": {"pool": True}}),
        ("", {"OPTIONS": {"pool": True}}),
    ],
)
def test_databases_without_our_pool_are_left_in_peace(
    database: Callable[..., None], engine: str, entry: dict[str, Any]
) -> None:
    database(engine=engine, **entry)
    assert ids(check_databases()) == []


def test_w003_tells_of_a_relative_stats_dir(database: Callable[..., None]) -> None:
    database(OPTIONS={"pool": {"stats_dir": "run/shop"}})
    assert ids(check_databases()) == ["W003"]


def test_w004_tells_of_a_stats_dir_that_no_socket_fits_into(
    database: Callable[..., None],
) -> None:
    database(OPTIONS={"pool": {"stats_dir": "/srv/" + "deep/" * 18}})
    assert ids(check_databases()) == ["W004"]


def test_w004_is_silent_where_no_process_listens_on_a_socket(
    database: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "geteuid")
    database(OPTIONS={"pool": {"stats_dir": "/srv/" + "deep/" * 18}})
    assert ids(check_databases()) == []


@pytest.mark.parametrize(
    ("level", "here", "there"),
    [
        (1, "READ UNCOMMITTED", "READ COMMITTED"),
        (3, "REPEATABLE READ", "SERIALIZABLE"),
        (4, "SERIALIZABLE", "READ UNCOMMITTED"),
    ],
)
def test_w016_tells_what_a_number_means_for_psycopg(
    database: Callable[..., None], level: int, here: str, there: str
) -> None:
    database(OPTIONS={"isolation_level": level})
    [message] = check_databases()
    assert message.id == "django_pooled.W016"
    assert f"is {level}, which is {here} for psycopg; for psycopg2 it was {there}" in message.msg
    assert psycopg.IsolationLevel(level).name.replace("_", " ") == here


@pytest.mark.parametrize("level", [None, psycopg.IsolationLevel.SERIALIZABLE, True])
def test_w016_is_silent_for_what_can_mean_one_thing_only(
    database: Callable[..., None], level: object
) -> None:
    database(OPTIONS={"isolation_level": level} if level is not None else {})
    assert check_databases() == []


def test_e001_refuses_a_level_that_does_not_exist(database: Callable[..., None]) -> None:
    database(OPTIONS={"isolation_level": 7})
    [message] = check_databases()
    assert message.id == "django_pooled.E001"
    assert "['isolation_level'] is 7; expected one of psycopg.IsolationLevel." in message.msg


@pytest.mark.parametrize(
    "engine",
    ["dj_db_conn_pool.backends.postgresql", "django_db_geventpool.backends.postgresql_psycopg3"],
)
def test_w017_tells_of_a_database_that_uses_another_package_s_pool(
    database: Callable[..., None], engine: str
) -> None:
    database(engine=engine)
    [message] = check_databases()
    assert message.id == "django_pooled.W017"
    assert repr(engine) in message.msg


def test_options_of_another_pool_are_refused_without_a_pool_too(
    database: Callable[..., None],
) -> None:
    database(OPTIONS={"pool": False, "MAX_CONNS": 4})
    [message] = check_databases()
    assert message.id == "django_pooled.E001"
    assert "'MAX_CONNS'" in message.msg


def test_a_database_of_ours_without_a_pool_is_silent(database: Callable[..., None]) -> None:
    database(CONN_MAX_AGE=60, CONN_HEALTH_CHECKS=True, OPTIONS={"pool": False})
    assert check_databases() == []


@pytest.mark.parametrize(
    "entry",
    [
        {"HOST": "db1,db2"},
        {"HOST": "db1,db2,db3", "PORT": "5432,5432,5433", "OPTIONS": {"pool": {"max_size": 3}}},
        {"OPTIONS": {"host": "db1,db2", "load_balance_hosts": "random"}},
        {"OPTIONS": {"hostaddr": "10.0.0.1,10.0.0.2"}},
    ],
)
def test_w027_asks_which_of_several_hosts_are_meant(
    database: Callable[..., None], entry: dict[str, Any]
) -> None:
    database(**entry)
    assert ids(check_databases()) == ["W027"]


@pytest.mark.parametrize(
    "entry",
    [
        {"HOST": "db1"},
        {"HOST": "db1,db2", "OPTIONS": {"target_session_attrs": "any"}},
        {"HOST": "db1,db2", "OPTIONS": {"target_session_attrs": "read-write"}},
        {"HOST": "db1,db2", "OPTIONS": {"pool": {"read_only": True}}},
        {"HOST": "db1,db2", "TEST": {"MIRROR": "default"}},
        {"OPTIONS": {"service": "shop"}},
    ],
)
def test_w027_is_silent_where_the_settings_say_it(
    database: Callable[..., None], entry: dict[str, Any]
) -> None:
    database(**entry)
    assert ids(check_databases()) == []


def fetch() -> str:
    return "a token"


@pytest.mark.parametrize("entry", [{}, {"PASSWORD": fetch()}, {"OPTIONS": {"user": "ada"}}])
def test_w028_tells_of_a_lifetime_of_credentials_that_nothing_fetches(
    database: Callable[..., None], entry: dict[str, Any]
) -> None:
    options = {**entry.pop("OPTIONS", {}), "pool": {"credentials_lifetime": 600}}
    database(**entry, OPTIONS=options)
    assert ids(check_databases()) == ["W028"]


@pytest.mark.parametrize(
    "entry",
    [
        {"PASSWORD": fetch},
        {"USER": fetch},
        {"OPTIONS": {"password": fetch}},
        {"OPTIONS": {"pool": {"credentials": fetch}}},
    ],
)
def test_w028_is_silent_where_credentials_are_fetched(
    database: Callable[..., None], entry: dict[str, Any]
) -> None:
    options = entry.get("OPTIONS", {})
    pool = {"credentials_lifetime": 600, **options.get("pool", {})}
    database(**{**entry, "OPTIONS": {**options, "pool": pool}})
    assert ids(check_databases()) == []


@pytest.mark.parametrize("middleware", [MIDDLEWARE, f"{__name__}.OwnMiddleware"])
def test_w005_asks_for_the_error_handler_beside_the_middleware(
    settings: Settings, middleware: str
) -> None:
    settings.MIDDLEWARE = [middleware]
    settings.ROOT_URLCONF = URLs()
    assert ids(check_error_handler()) == ["W005"]


@pytest.mark.parametrize(
    "handler", ["django_pooled.middleware.handler500", f"{__name__}.own_handler500"]
)
def test_w005_is_silent_when_there_is_an_error_handler(settings: Settings, handler: str) -> None:
    settings.MIDDLEWARE = [MIDDLEWARE]
    settings.ROOT_URLCONF = URLs(handler500=handler)
    assert ids(check_error_handler()) == []


@pytest.mark.parametrize(
    ("middleware", "urls"),
    [
        (["django.middleware.common.CommonMiddleware"], URLs()),
        (["shop.no_such_middleware", f"{__name__}.own_handler500"], URLs()),
        ([MIDDLEWARE], None),
        ([MIDDLEWARE], URLs(handler500="shop.no_such_handler")),
        ([MIDDLEWARE], URLs(handler500="django.http.no_such_handler")),
    ],
)
def test_w005_is_silent_where_it_has_nothing_to_say(
    settings: Settings, middleware: list[str], urls: URLs | None
) -> None:
    settings.MIDDLEWARE = middleware
    settings.ROOT_URLCONF = urls
    assert ids(check_error_handler()) == []


def answer(request: HttpRequest) -> HttpResponse:
    return HttpResponse()


def urls_of(urlpatterns: list[Any]) -> URLs:
    return URLs(urlpatterns=urlpatterns)


@pytest.mark.parametrize("using", ["default", "native", "replica"])
def test_e005_finds_urls_that_are_retried_on_no_database_of_ours(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, using: str
) -> None:
    monkeypatch.setitem(settings.DATABASES, "native", {"ENGINE": NATIVE})
    retried = retry_requests([path("a/", answer)], using=using)
    settings.ROOT_URLCONF = urls_of([path("shop/", include(retried)), path("b/", answer)])
    found = check_retried_urls()
    assert ids(found) == ([] if using == "default" else ["E005"])
    assert using == "default" or using in found[0].msg


def test_w021_finds_urls_that_are_retried_twice(settings: Settings) -> None:
    once = retry_requests([path("a/", answer)])
    settings.ROOT_URLCONF = urls_of(retry_requests([*once, path("b/", include(once))]))
    assert ids(check_retried_urls()) == ["W021"]


@pytest.mark.parametrize("urls", [None, "shop.no_such_urls"])
def test_urls_that_cannot_be_loaded_are_left_to_django(settings: Settings, urls: Any) -> None:
    settings.ROOT_URLCONF = urls
    assert check_retried_urls() == []


def test_versions_in_order_are_silent() -> None:
    assert ids(check_versions()) == []


@pytest.mark.parametrize(
    ("module", "version", "expected"),
    [
        (psycopg, "3.1.20", ["E002"]),
        (psycopg, "3.2.3", ["E002"]),
        (psycopg, "3.2.4", []),
        (psycopg, "4.0.0.dev1", []),
        (psycopg_pool, "3.2.6", ["E003"]),
        (psycopg_pool, "3.3.0", []),
        (psycopg_pool, "3.4.0", ["W026"]),
        (psycopg_pool, "4.0.0", ["W026"]),
    ],
)
def test_versions_that_are_too_old_are_errors_and_untested_ones_are_warnings(
    monkeypatch: pytest.MonkeyPatch, module: Any, version: str, expected: list[str]
) -> None:
    monkeypatch.setattr(module, "__version__", version)
    assert ids(check_versions()) == expected


def test_the_versions_that_may_be_installed_begin_with_the_oldest_that_is_taken() -> None:
    wanted = (Path(__file__).parents[3] / "setup.cfg").read_text(encoding="utf-8")
    assert f"psycopg-pool>={'.'.join(map(str, OLDEST_POOL))},<{OLDEST_POOL[0] + 1}\n" in wanted


def test_the_application_registers_its_checks_under_a_tag_of_its_own() -> None:
    tags = io.StringIO()
    call_command("check", list_tags=True, stdout=tags)
    assert "django_pooled" in tags.getvalue().split()


@pytest.mark.parametrize(
    ("pool", "status", "words"),
    [
        ("{'max_size': 4}", 0, "System check identified no issues"),
        ("{'max_sise': 4}", 1, "(django_pooled.E001) DATABASES['default']"),
    ],
)
def test_manage_py_check_says_it_without_a_server(
    tmp_path: Path, pool: str, status: int, words: str
) -> None:
    (tmp_path / "shop_settings.py").write_text(
        "SECRET_KEY = 'x'\n"
        "INSTALLED_APPS = ['django.contrib.contenttypes', 'django_pooled']\n"
        f"DATABASES = {{'default': {{'ENGINE': 'django_pooled', 'OPTIONS': {{'pool': {pool}}}}}}}\n"
    )
    result = subprocess.run(
        [sys.executable, "-m", "django", "check", "--settings=shop_settings"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, sys.path)])},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == status, result.stderr
    assert words in result.stdout + result.stderr
