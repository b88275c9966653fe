"""Options in a wrong place are refused before a connection is opened, with their right place."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
from django.core.exceptions import ImproperlyConfigured

from django_pooled.backend.startup import validate
from django_pooled.pool.options import PoolOptions

OPTIONS_OF_LIBPQ = [
    option.keyword.decode()
    for option in psycopg.pq.Conninfo.get_defaults()
    if option.keyword != b"dbname"
]


def refusal(**settings: Any) -> str:
    with pytest.raises(ImproperlyConfigured) as refused:
        validate("reports", {"ENGINE": "django_pooled", "NAME": "shop", **settings})
    return str(refused.value)


@pytest.mark.parametrize("pool", [True, False, {}])
@pytest.mark.parametrize("key", ["min_size", "max_lifetime", "POOL_MODE", "name", "Timeout"])
def test_an_option_of_the_pool_among_the_connection_parameters_belongs_into_pool(
    key: str, pool: object
) -> None:
    assert refusal(OPTIONS={"pool": pool, key: 7}) == (
        f"DATABASES['reports']['OPTIONS'][{key!r}] is an option of the pool; expected "
        f"OPTIONS['pool'][{key.lower()!r}]."
    )


@pytest.mark.parametrize("pool", [True, False])
@pytest.mark.parametrize(
    ("key", "belongs"),
    [
        ("POOL", "OPTIONS['pool']"),
        ("pool", "OPTIONS['pool']"),
        ("options", "OPTIONS"),
        ("MAX_SIZE", "OPTIONS['pool']['max_size']"),
        ("leak_after", "OPTIONS['pool']['leak_after']"),
        ("name", "OPTIONS['pool']['name']"),
    ],
)
def test_an_option_of_the_pool_beside_options_would_have_no_effect(
    key: str, belongs: str, pool: bool
) -> None:
    message = refusal(**{key: {"max_size": 3}}, OPTIONS={"pool": pool})
    assert message == f"DATABASES['reports'][{key!r}] has no effect; expected {belongs}."


def test_another_spelling_of_pool_would_have_no_effect() -> None:
    message = refusal(OPTIONS={"POOL": {"max_size": 3}})
    assert message == (
        "DATABASES['reports']['OPTIONS']['POOL'] has no effect; expected OPTIONS['pool']."
    )


@pytest.mark.parametrize("key", ["sslmode", "connect_timeout", "keepalives_idle"])
def test_a_connection_parameter_in_pool_belongs_into_options(key: str) -> None:
    assert refusal(OPTIONS={"pool": {key: "2"}}) == (
        f"DATABASES['reports']['OPTIONS']['pool'][{key!r}] is a connection parameter; expected "
        f"OPTIONS[{key!r}]."
    )


@pytest.mark.parametrize("engine", ["django_pooled", "django_pooled.postgis"])
@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("ssl_mode", " Did you mean OPTIONS['sslmode']?"),
        ("max_sizes", " Did you mean OPTIONS['pool']['max_size']?"),
        ("POOL_OPTION", " Did you mean OPTIONS['pool']?"),
        ("CONN_MAX_AGE", " Did you mean DATABASES['reports']['CONN_MAX_AGE']?"),
        ("tenant", ""),
    ],
)
def test_a_parameter_that_neither_libpq_nor_psycopg_knows_is_refused(
    key: str, meant: str, engine: str
) -> None:
    if engine == "django_pooled.postgis":
        # Django's error of a missing GDAL is no ImportError.
        pytest.importorskip("django.contrib.gis.db.backends.postgis.base", exc_type=Exception)  # type: ignore[arg-type]
    assert refusal(ENGINE=engine, OPTIONS={key: "secret"}) == (
        f"DATABASES['reports']['OPTIONS'][{key!r}] is not a connection parameter; expected one "
        f"that libpq or psycopg knows.{meant}"
    )


def test_parameters_of_libpq_psycopg_and_django_are_fine() -> None:
    looked_at = {"target_session_attrs": "any", "load_balance_hosts": "random"}
    options = {
        **{key: looked_at.get(key, "1") for key in OPTIONS_OF_LIBPQ},
        "prepare_threshold": 5,
        "autocommit": True,
        "cursor_factory": psycopg.ClientCursor,
        "isolation_level": psycopg.IsolationLevel.SERIALIZABLE,
        "assume_role": "clerk",
        "server_side_binding": True,
        "pool": {"application_name": False},
    }
    entry = {"ENGINE": "django_pooled", "NAME": "shop", "OPTIONS": options}
    assert validate("reports", entry) == PoolOptions(application_name=False)


def test_a_backend_built_on_this_one_may_have_options_of_its_own() -> None:
    entry = {"ENGINE": "tests.third_parties.backends.ours_first", "OPTIONS": {"tenant": "blue"}}
    assert validate("reports", entry) == PoolOptions()


def test_an_isolation_level_that_does_not_exist_is_refused() -> None:
    message = refusal(OPTIONS={"isolation_level": "serializable"})
    assert "['isolation_level'] is 'serializable'; expected one of psycopg.Isolation" in message
