from __future__ import annotations

from typing import Any

import psycopg
import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db import DatabaseError
from django.test import RequestFactory

from django_pooled.backend.addresses import refuse_addresses
from django_pooled.backend.options import parse
from django_pooled.diagnostics.log_fields import event_fields
from django_pooled.diagnostics.redaction import (
    masked,
    one_line,
    remember,
    remember_settings,
    scrub,
    shown,
    stand_in,
    told,
)
from django_pooled.middleware import unavailable_response

SECRET = "kai-Ser41"


@pytest.mark.parametrize(
    "text",
    [
        f'database "postgres://clerk:{SECRET}@db.internal:6432/shop" does not exist',
        f'database "postgresql://clerk:my {SECRET}@db/shop" does not exist',
        f'database "postgres://clerk:{SECRET}-and-so-on-up-to-63-by" does not exist',
        f"rediss://:{SECRET}@cache:6379/0",
        f'missing "=" after "clerk:{SECRET}@db/shop" in connection info string',
        f"host=db password={SECRET} user=clerk",
        f"host=db password = 'a {SECRET}' user=clerk",
        f"host=db password='never ended {SECRET}",
        f"host=db sslpassword=a\\ {SECRET}",
        f"PGPASSWORD={SECRET} psql",
        f"{{'user': 'clerk', 'password': 'it is {SECRET}'}}",
        f'{{"access_token": "{SECRET}"}}',
        f"postgresql://db/shop?user=clerk&password={SECRET}&sslmode=require",
    ],
)
def test_a_password_in_an_address_or_a_connection_string_is_masked(text: str) -> None:
    assert SECRET not in masked(text)
    assert "***" in masked(text)


@pytest.mark.parametrize(
    "text",
    [
        'password authentication failed for user "clerk"',
        "fe_sendauth: no password supplied",
        'connection to server at "::1", port 5432 failed: Connection refused',
        "postgres://db.internal:5432/shop",
        "passfile=/home/clerk/.pgpass",
        "django 4121@web-1",
    ],
)
def test_what_is_no_password_stays(text: str) -> None:
    assert masked(text) == text


@pytest.mark.parametrize("secret", ['it\'s a "secret"', "p@ss/w rd", "grün\\es"])
def test_a_remembered_password_is_masked_however_it_is_spelt(secret: str) -> None:
    from json import dumps
    from urllib.parse import quote

    remember(secret)
    for spelt in (secret, quote(secret, safe=""), repr(secret), dumps(secret)):
        assert masked(f"tried {spelt} in vain").count("***") == 1
        assert secret not in masked(f"tried {spelt} in vain")


def test_a_password_that_is_not_utf_8_is_masked_and_the_next_one_remembered() -> None:
    remember("hush-\udcff-hush")
    remember("hush-hush")
    assert masked("hush-\udcff-hush, hush-%ED%B3%BF-hush, hush-hush") == "***, ***, ***"


def test_a_password_that_is_the_user_s_name_too_hides_nothing() -> None:
    remember_settings({"NAME": "shop", "USER": "shopkeeper", "PASSWORD": "shopkeeper"})
    assert masked('role "shopkeeper" does not exist') == 'role "shopkeeper" does not exist'


def test_a_long_text_of_slashes_is_looked_through_in_no_time() -> None:
    assert len(masked("://" * 1_000_000)) < 10_000


def test_a_line_holds_nothing_that_a_terminal_acts_upon() -> None:
    text = "ready\r\n\x1b[2JFATAL:\u202e \x00all is well\ud800\x9b31m"
    line = one_line(text)
    assert line == r"ready \x1b[2JFATAL:\u202e \x00all is well\ud800\x9b31m"
    assert line.isprintable()
    assert len(one_line("x" * 10_000_000)) < 3000


def test_the_detail_is_cut_off_where_only_the_text_is_left_in_any_language() -> None:
    error = ValueError("doppelter Schlüssel\nDETAIL:  Schlüssel (mail)=(ada@example.org)\nmore")
    assert told(error) == "doppelter Schlüssel"
    assert told(DatabaseError("syntax error\nLINE 1: SELECT 'ada'\n               ^")) == (
        "syntax error"
    )
    assert told(ValueError()) == "ValueError"


def test_an_error_whose_class_is_hard_to_make_has_a_stand_in_too() -> None:
    class Hard(Exception):
        def __init__(self, one: int, *, two: int) -> None:
            super().__init__(one, two)

    _, value, _ = stand_in(Hard(1, two=2))
    assert isinstance(value, Hard)
    assert str(value) == "(1, 2)"


def test_what_an_error_was_raised_from_is_scrubbed_in_place() -> None:
    inner = psycopg.OperationalError(f"bad postgres://clerk:{SECRET}@db\n\x1b[31mno")
    outer = psycopg.ProgrammingError("failed")
    outer.__cause__ = inner
    scrub(outer)
    assert str(inner) == "bad postgres://***@db\n\\x1b[31mno"


# Settings


@pytest.mark.parametrize("key", ["NAME", "USER", "HOST", "PORT"])
@pytest.mark.parametrize(
    "value",
    [
        f"postgres://clerk:{SECRET}@db/shop",
        f"postgis://clerk:{SECRET}@db/{'x' * 80}",
        f"clerk:{SECRET}@db",
        f"host=db password={SECRET}",
        f"hots=db password={SECRET}",
    ],
)
def test_an_address_in_place_of_its_part_is_refused_without_being_repeated(
    key: str, value: str
) -> None:
    with pytest.raises(ImproperlyConfigured) as refused:
        refuse_addresses("reports", {"NAME": "shop", key: value})
    assert f"DATABASES['reports'][{key!r}] is a whole address" in str(refused.value)
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize(
    "entry",
    [
        {"NAME": "shop", "USER": "clerk@tenant", "HOST": "fe80::1,db", "PORT": "5432,5433"},
        {"NAME": "a=b", "HOST": "/var/run/clerk:x@y"},
        {"NAME": "one:two", "HOST": "@abstract", "OPTIONS": {"service": "shop", "host": "db"}},
    ],
)
def test_parts_that_look_odd_are_no_addresses(entry: dict[str, Any]) -> None:
    refuse_addresses("default", entry)


@pytest.mark.parametrize(
    "pool",
    [
        {"password": SECRET},
        {"pasword": SECRET},
        {"kwargs": {"password": SECRET}},
        {"conninfo": f"postgresql://clerk:{SECRET}@db"},
        {"max_size": f"postgresql://clerk:{SECRET}@db"},
        {"name": ["clerk", {"password": SECRET}]},
        {"backoff": {"secret": SECRET}},
        {"backoff": [f"password={SECRET}"]},
        f"postgresql://clerk:{SECRET}@db",
        [SECRET],
    ],
)
def test_a_refusal_of_the_pool_s_options_shows_no_password(pool: Any) -> None:
    with pytest.raises(ImproperlyConfigured) as refused:
        parse("reports", {"PASSWORD": SECRET, "OPTIONS": {"pool": pool}})
    assert SECRET not in str(refused.value)
    assert "DATABASES['reports']" in str(refused.value)


def test_a_long_setting_is_cut_and_a_number_shown_as_it_is() -> None:
    assert len(shown("x" * 5000)) < 250
    assert shown(None) == "None"
    assert shown(1.5) == "1.5"


# What the pool and the middleware say


def test_facts_are_one_line_each_and_without_passwords() -> None:
    found = event_fields("happened", host="web\n1", server=f"postgres://clerk:{SECRET}@db")
    assert found == {"event": "happened", "host": "web 1", "server": "postgres://***@db"}


def test_a_path_cannot_forge_a_line_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    error = psycopg.OperationalError("server closed the connection\nERROR all is well")
    request = RequestFactory().get("/votes%0AERROR%20root%20logged%20in%1B%5B2J/")
    assert unavailable_response(request, error) is not None
    line = caplog.records[-1].getMessage()
    assert line.isprintable()
    assert "ERROR all is well" in line
