from __future__ import annotations

from typing import Any

import psycopg
import pytest
from django.core.exceptions import ImproperlyConfigured

from django_pooled.backend.startup import validate

balances = pytest.mark.skipif(
    psycopg.pq.version() < 160000, reason="libpq knows load_balance_hosts since 16"
)


def entry(**settings: Any) -> dict[str, Any]:
    return {"ENGINE": "django_pooled", "NAME": "shop", **settings}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"HOST": "db1,db2", "PORT": "5432,5433,5434"},
            "['PORT'] has 3 ports; expected one, or one for each host, of which there are 2.",
        ),
        (
            {"HOST": "db1", "PORT": "5432,5433"},
            "['PORT'] has 2 ports; expected one, or one for each host, of which there is 1.",
        ),
        (
            {"HOST": "db1,db2", "OPTIONS": {"hostaddr": "10.0.0.1"}},
            "['hostaddr'] has 1 address; expected one for each host, of which there are 2.",
        ),
        (
            {"OPTIONS": {"hostaddr": "10.0.0.1,10.0.0.2", "port": "1,2,3"}},
            "['PORT'] has 3 ports; expected one, or one for each host, of which there are 2.",
        ),
        (
            {"OPTIONS": {"target_session_attrs": "readwrite"}},
            "['target_session_attrs'] is 'readwrite'; expected one of any, read-write, read-only, "
            "primary, standby, prefer-standby. Did you mean 'read-write'?",
        ),
        (
            {"OPTIONS": {"target_session_attrs": None}},
            "['target_session_attrs'] is None; expected one of any, ",
        ),
        pytest.param(
            {"OPTIONS": {"load_balance_hosts": True}},
            "['load_balance_hosts'] is True; expected one of disable, random.",
            marks=balances,
        ),
    ],
)
def test_lists_and_values_that_libpq_would_refuse_are_refused_at_start_up(
    settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(ImproperlyConfigured) as refused:
        validate("reports", entry(**settings))
    assert words in str(refused.value)
    assert str(refused.value).startswith("DATABASES['reports']")


@pytest.mark.parametrize(
    "settings",
    [
        {"HOST": "db1,db2"},
        {"HOST": "db1,db2", "PORT": "5432"},
        {"HOST": "db1,db2", "PORT": 5433, "OPTIONS": {"target_session_attrs": "primary"}},
        {"HOST": "db1,db2", "OPTIONS": {"hostaddr": "10.0.0.1,10.0.0.2"}},
        {"PORT": "5432,5433"},
        pytest.param(
            {"OPTIONS": {"load_balance_hosts": "random", "target_session_attrs": "any"}},
            marks=balances,
        ),
    ],
)
def test_lists_that_match_are_taken(settings: dict[str, Any]) -> None:
    assert validate("reports", entry(**settings)) is not None
