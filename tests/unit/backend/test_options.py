from __future__ import annotations

from dataclasses import FrozenInstanceError
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured

from django_pooled import Backoff
from django_pooled.backend.databases import is_pooled
from django_pooled.backend.options import parse
from django_pooled.pool.options import PoolOptions


def database(pool: object = True, **settings: Any) -> dict[str, Any]:
    return {"ENGINE": "django_pooled", "OPTIONS": {"pool": pool}, **settings}


def refusal(pool: object = True, **settings: Any) -> str:
    with pytest.raises(ImproperlyConfigured) as refused:
        parse("reports", database(pool, **settings))
    return str(refused.value)


@pytest.mark.parametrize("given", [{"OPTIONS": {"pool": True}}, {"OPTIONS": {}}, {}])
def test_a_pool_needs_no_options(given: dict[str, Any]) -> None:
    assert parse("default", given) == PoolOptions()


def test_defaults_are_the_documented_ones() -> None:
    options = parse("default", database())
    assert (options.min_size, options.max_size, options.timeout) == (1, 10, 30.0)
    assert (options.max_waiting, options.max_lifetime, options.max_idle) == (0, 1800.0, 600.0)
    assert options.pool_mode == "session"


def test_options_cannot_be_changed_afterwards() -> None:
    with pytest.raises(FrozenInstanceError):
        parse("default", database()).max_size = 3  # type: ignore[misc]


def test_a_misspelt_option_is_refused_with_the_nearest_known_one() -> None:
    message = refusal({"max_sise": 3})
    assert "DATABASES['reports']['OPTIONS']['pool']['max_sise'] = 3" in message
    assert "Did you mean 'max_size'?" in message


def test_an_option_that_resembles_none_gets_the_list() -> None:
    message = refusal({"zzz": 3})
    assert "max_lifetime" in message
    assert "Did you mean" not in message


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("MAX_SIZE", "max_size"),
        ("POOL_SIZE", "max_size"),
        ("max_overflow", "max_size"),
        ("RECYCLE", "max_lifetime"),
        ("pool_use_lifo", "use_lifo"),
        ("pool_pre_ping", "check_after"),
        ("MAX_CONNS", "max_size"),
        ("REUSE_CONNS", "min_size"),
    ],
)
def test_an_option_of_another_pool_is_refused_with_its_name_here(key: str, meant: str) -> None:
    assert f"Did you mean {meant!r}?" in refusal({key: 3})


def test_what_dj_db_conn_pool_left_in_the_settings_is_refused() -> None:
    message = refusal(POOL_OPTIONS={"POOL_SIZE": 5})
    assert "DATABASES['reports']['POOL_OPTIONS'] is an option of dj_db_conn_pool" in message
    assert "'max_size' for POOL_SIZE plus MAX_OVERFLOW" in message


@pytest.mark.parametrize(
    ("key", "instead"), [("MAX_CONNS", "['max_size']"), ("REUSE_CONNS", "['max_idle']")]
)
def test_what_geventpool_left_in_the_settings_is_refused(key: str, instead: str) -> None:
    message = refusal(OPTIONS={key: 20})
    assert f"DATABASES['reports']['OPTIONS'][{key!r}] is an option of django-db-geven" in message
    assert "expected OPTIONS['pool']" in message
    assert instead in message


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("max_size", "10", "a whole number, 1 or more"),
        ("max_size", 0, "a whole number, 1 or more"),
        ("max_size", True, "a whole number, 1 or more"),
        ("min_size", -1, "a whole number, 0 or more"),
        ("timeout", 0, "a number of seconds above 0"),
        ("timeout", "30", "a number of seconds above 0"),
        ("timeout", float("nan"), "a number of seconds above 0"),
        ("timeout", float("inf"), "a number of seconds above 0"),
        ("max_lifetime", -1.0, "a number of seconds above 0"),
        ("max_lifetime", 10**400, "a number of seconds above 0"),
        ("check_after", -0.1, "a number of seconds, 0 or more"),
        ("leak_after", 0, "a number of seconds above 0, or None"),
        ("pool_mode", "statement", "'session' or 'transaction'"),
        ("reset", "all", "'auto', 'rollback', 'discard' or a callable"),
        ("backoff", 1.0, "a dict with 'initial' and 'maximum'"),
        ("stats_dir", True, "a folder's path, None for the default, or False"),
        ("check", "yes", "a callable or None"),
        ("open_at_start", 1, "True or False"),
        ("use_lifo", "yes", "True or False"),
        ("keepalive", 0, "a number of seconds above 0, or None"),
    ],
)
def test_an_impossible_value_is_refused_with_what_was_expected(
    key: str, value: object, expected: str
) -> None:
    message = refusal({key: value})
    assert f"DATABASES['reports']['OPTIONS']['pool'][{key!r}] is {value!r}" in message
    assert expected in message


def test_a_max_size_below_min_size_is_refused() -> None:
    assert "expected at least min_size, 5" in refusal({"min_size": 5, "max_size": 4})


def test_a_keepalive_that_no_connection_lives_to_see_is_refused() -> None:
    message = refusal({"keepalive": 60, "max_lifetime": 60})
    assert "['keepalive'] is 60; expected less than max_lifetime, 60, or None" in message


def test_a_min_size_alone_never_contradicts_the_default_max_size() -> None:
    assert parse("default", database({"min_size": 20})).max_size == 20


def test_max_size_none_is_a_pool_of_fixed_size_as_in_psycopg_pool() -> None:
    assert parse("default", database({"min_size": 3, "max_size": None})).max_size == 3


@pytest.mark.parametrize("pool", [None, 10, "on", ["max_size"]])
def test_something_else_than_true_or_a_dict_is_refused(pool: object) -> None:
    message = refusal(pool)
    assert f"DATABASES['reports']['OPTIONS']['pool'] is {pool!r}" in message
    assert "expected True, a dict of options, or False" in message


@pytest.mark.parametrize("max_age", [60, None, 0.5])
def test_persistent_connections_beside_a_pool_are_refused(max_age: object) -> None:
    message = refusal(CONN_MAX_AGE=max_age)
    assert f"DATABASES['reports']['CONN_MAX_AGE'] is {max_age!r}" in message
    assert "max_lifetime" in message


@pytest.mark.parametrize("key", ["kwargs", "conninfo", "configure", "open", "connection_class"])
def test_what_the_backend_decides_itself_is_refused_with_the_way_to_do_it(key: str) -> None:
    assert "expected nothing here:" in refusal({key: object()})


def test_backoff_is_given_as_a_dict() -> None:
    options = parse(
        "default", database({"backoff": {"initial": 0.5, "maximum": 2, "jitter": False}})
    )
    assert options.backoff == Backoff(0.5, 2, False)


@pytest.mark.parametrize(
    ("backoff", "expected"),
    [
        ({"initial": 0}, "expected a number of seconds above 0"),
        ({"intial": 1}, "Did you mean 'initial'?"),
        ({"jitter": 0.1}, "expected True or False"),
        ({"initial": 3, "maximum": 1}, "expected at least initial, 3"),
    ],
)
def test_a_bad_backoff_is_refused(backoff: dict[str, Any], expected: str) -> None:
    message = refusal({"backoff": backoff})
    assert "['pool']['backoff']" in message
    assert expected in message


def test_backends_built_on_this_one_count_as_pooled() -> None:
    assert is_pooled({"ENGINE": "django_pooled"})
    assert not is_pooled({"ENGINE": "django.db.backends.postgresql"})
    assert not is_pooled({"ENGINE": "django.db.backends.sqlite3"})
    assert not is_pooled({"ENGINE": "django_pooled", "OPTIONS": {"pool": False}})
