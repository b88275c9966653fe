"""The README's tables say what the code does."""

from __future__ import annotations

import inspect
import re
from dataclasses import asdict, fields
from pathlib import Path

import pytest

from django_pooled import retry_transaction
from django_pooled.pool.options import PoolOptions

README = (Path(__file__).parent.parent / "README.md").read_text()


def table(heading: str, end: str) -> dict[str, str]:
    """Return name and default of each row between two lines."""
    text = README[README.index(heading) :]
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \| .+ \|$", text[: text.index(end)], re.MULTILINE)
    return dict(rows)


OPTIONS = table("Essential:", "Arguments of")
ARGUMENTS = table("Arguments of", "## Watching")


@pytest.mark.parametrize("option", [field.name for field in fields(PoolOptions)])
def test_every_option_is_documented_with_its_default(option: str) -> None:
    value = getattr(PoolOptions(), option)
    shown = f"`{asdict(value)}`" if option == "backoff" else value
    assert OPTIONS[option].replace('"', "'") in (str(shown), f"{shown!r}")


def test_no_option_is_documented_that_does_not_exist() -> None:
    assert set(OPTIONS) == {field.name for field in fields(PoolOptions)}


def test_every_argument_of_retry_transaction_is_documented() -> None:
    parameters = inspect.signature(retry_transaction).parameters
    assert set(ARGUMENTS) == set(parameters) - {"function"}
    for name in ("using", "max_attempts", "deadline", "isolation_level", "read_only"):
        assert ARGUMENTS[name].replace('"', "'") == repr(parameters[name].default)
