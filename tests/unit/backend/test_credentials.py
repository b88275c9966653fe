from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured

from django_pooled.backend.client import DatabaseClient
from django_pooled.backend.credentials import resolved
from django_pooled.backend.startup import validate


async def coroutine_function(**_: Any) -> str:
    return "never"


class Client:
    async def __call__(self, **_: Any) -> str:
        return "never"

    def token(self) -> str:
        return "a token"


def entry(place: tuple[str, ...], value: object) -> dict[str, Any]:
    made: dict[str, Any] = {"ENGINE": "django_pooled", "NAME": "shop", "OPTIONS": {"pool": {}}}
    inner = made
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return made


PLACES = [
    ("PASSWORD",),
    ("USER",),
    ("OPTIONS", "password"),
    ("OPTIONS", "pool", "credentials"),
    ("OPTIONS", "pool", "connect"),
]


@pytest.mark.parametrize("value", [coroutine_function, Client(), partial(coroutine_function)])
@pytest.mark.parametrize("place", PLACES, ids="-".join)
def test_coroutine_functions_are_refused_at_start_up(place: tuple[str, ...], value: object) -> None:
    words = "".join(f"[{key!r}]" for key in place)
    with pytest.raises(ImproperlyConfigured) as refused:
        validate("reports", entry(place, value))
    assert f"DATABASES['reports']{words} is a coroutine function" in str(refused.value)


@pytest.mark.parametrize("place", PLACES, ids="-".join)
def test_plain_callables_are_taken(place: tuple[str, ...]) -> None:
    assert validate("reports", entry(place, Client().token)) is not None


def test_what_is_fetched_wins_over_the_settings() -> None:
    params = {"user": "ada", "password": "old", "host": "db"}
    found = resolved(params, lambda: {"user": "v-1", "password": "new"})
    assert found == {"user": "v-1", "password": "new", "host": "db"}


def test_a_password_that_is_called_for_may_be_none() -> None:
    assert resolved({"password": lambda: None}) == {"password": None}


def test_dbshell_gets_the_credentials_that_the_pool_would_get() -> None:
    fetched = {"user": "v-1", "password": "secret", "sslcert": "/run/v-1.crt"}
    settings = {
        "NAME": "shop",
        "HOST": "db",
        "USER": "ada",
        "PASSWORD": lambda: "of ada",
        "OPTIONS": {"sslmode": "require", "pool": {"credentials": lambda: fetched}},
    }
    arguments, environment = DatabaseClient.settings_to_cmd_args_env(settings, ["-c", "SELECT 1"])
    assert arguments == ["psql", "-U", "v-1", "-h", "db", "-c", "SELECT 1", "shop"]
    assert environment == {
        "PGPASSWORD": "secret",
        "PGSSLMODE": "require",
        "PGSSLCERT": "/run/v-1.crt",
    }
    settings["OPTIONS"] = {}
    assert DatabaseClient.settings_to_cmd_args_env(settings, [])[1] == {"PGPASSWORD": "of ada"}
