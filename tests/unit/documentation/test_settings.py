"""The tables of docs/settings.md say what the code does."""

from __future__ import annotations

import inspect
import re
from dataclasses import asdict, fields
from pathlib import Path

import pytest

from django_pooled import retry_transaction
from django_pooled.pool.options import PoolOptions

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "settings.md").read_text()


def table(text: str) -> dict[str, str]:
    """Return name and default of each row."""
    return dict(re.findall(r"^\| `(\w+)` \| (.+?) \| .+ \|$", text, re.MULTILINE))


OPTIONS, ARGUMENTS = map(table, PAGE.split("## Arguments of `retry_transaction`"))


@pytest.mark.parametrize("option", [field.name for field in fields(PoolOptions)])
def test_every_option_is_documented_with_its_default(option: str) -> None:
    value = getattr(PoolOptions(), option)
    shown = f"`{asdict(value)}`" if option == "backoff" else value
    assert OPTIONS[option].replace('"', "'") in (str(shown), f"{shown!r}")


def test_no_option_is_documented_that_does_not_exist() -> None:
    assert set(OPTIONS) == {field.name for field in fields(PoolOptions)}


def test_every_argument_of_retry_transaction_is_documented() -> None:
    parameters = inspect.signature(retry_transaction).parameters
    assert set(ARGUMENTS) == set(parameters) - {"function", "unknown"}
    for name in ("using", "max_attempts", "deadline", "isolation_level", "read_only"):
        assert ARGUMENTS[name].replace('"', "'") == repr(parameters[name].default)
