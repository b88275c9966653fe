"""Reads what a process answered: the type and range of every figure, checked in one place."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import fields
from math import isfinite
from typing import TYPE_CHECKING, Any

from django_pooled.diagnostics.redaction import one_line, printable
from django_pooled.stats.histogram import BOUNDS, Histogram
from django_pooled.stats.orders import Answer
from django_pooled.stats.snapshot import (
    REPORT_VERSION,
    ConnectionFigures,
    Counters,
    Interval,
    OrderResult,
    PoolSnapshot,
    ProcessReport,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping
    from typing import TypeAlias

    Check: TypeAlias = Callable[[Any, str], Any]
    """Takes a value and its path in the answer; returns it, or raises InvalidAnswer."""

__all__ = ["LARGEST_ANSWER", "InvalidAnswer", "parse_counters", "parse_report"]

LARGEST_ANSWER = 4 * 1024 * 1024
"""Bytes; a longer answer is not one of ours: a pool of ten connections takes five thousand."""

MOST = 2**53 - 1
"""The largest whole number that every program reads as it is written."""

LONGEST = 1e15
"""Seconds; more than all times of a site add up to."""

MOST_POOLS = 5_000
MOST_CONNECTIONS = 10_000
MOST_KINDS = 500
MOST_INTERVALS = 1_000
LONGEST_NAME = 300
"""Characters; longer names are cut."""


class InvalidAnswer(ValueError):
    """A value in an answer that no process of ours sends; the message begins with its path."""


def parse_report(answer: bytes) -> ProcessReport:
    """Return the report of a process.

    Texts have no characters that a terminal would act upon. Unknown keys are left out; a figure
    that another version does not report is 0, empty or None.

    Raises:
        InvalidAnswer: A value is wrong; the message completes "Process 1 answered nonsense:".
        ValueError: It is no report that could be read; the message completes "an answer that".
    """
    if not answer:
        raise ValueError("is empty")
    if len(answer) > LARGEST_ANSWER:
        raise ValueError(f"is longer than {LARGEST_ANSWER} bytes")
    try:
        report = json.loads(answer, parse_constant=_refuse)
    except InvalidAnswer:
        raise
    except (ValueError, RecursionError):
        raise ValueError("is not whole or not JSON") from None
    if isinstance(report, dict) and isinstance(report.get("error"), str):
        raise ValueError(f"only says that it failed ({_name(report['error'], 'error')})")
    if not isinstance(report, dict) or type(report.get("version")) is not int:
        raise ValueError("is not a report of pools")
    version = _count(report["version"], "version")
    if version > REPORT_VERSION:
        raise ValueError(f"is in format {version}, newer than this command's {REPORT_VERSION}")
    return ProcessReport(**_values(report, "", _REPORT, required=("pid", "command", "pools")))


def parse_counters(value: object, path: str) -> Counters:
    """Return what a pool has counted.

    Args:
        value: As in a report.
        path: Where it is, for the message.

    Raises:
        InvalidAnswer: It holds anything else.
    """
    return Counters(**_values(value, path, _COUNTERS))


def _refuse(constant: str) -> float:
    raise InvalidAnswer(f"{constant} is not a number")


def _count(value: Any, path: str) -> int:
    # A bool is an int too.
    if type(value) is not int or not 0 <= value <= MOST:
        raise InvalidAnswer(f"{path} is not a whole number between 0 and 2^53")
    return value


def _backend_pid(value: Any, path: str) -> int:
    # Behind a pooler it is any number of 32 bits, with a sign; 0 stands for one that says nothing.
    return 0 if type(value) is int and -(2**31) <= value < 0 else _count(value, path)


def _number(value: Any, path: str) -> float:
    # Compared before it is made a float, which not every int can be.
    if (
        not isinstance(value, (int, float))
        or isinstance(value, bool)
        or not -1 <= value <= LONGEST
        or not isfinite(value)
    ):
        raise InvalidAnswer(f"{path} is not a number between 0 and 10^15")
    # A clock that is read twice may make it a little less than 0.
    return max(0.0, value)


def _name(value: Any, path: str) -> str:
    if not isinstance(value, str):
        raise InvalidAnswer(f"{path} is not a text")
    return printable(value[:LONGEST_NAME])


def _text(value: Any, path: str) -> str:
    return one_line(value) if isinstance(value, str) else _name(value, path)


def _or_null(check: Check) -> Check:
    return lambda value, path: None if value is None else check(value, path)


def _list_of(check: Check, most: int) -> Check:
    def checked(value: Any, path: str) -> list[Any]:
        if not isinstance(value, list):
            raise InvalidAnswer(f"{path} is not a list")
        if len(value) > most:
            raise InvalidAnswer(f"{path} has more than {most} entries")
        return [check(one, f"{path}[{number}]") for number, one in enumerate(value)]

    return checked


def _by_kind(check: Check) -> Check:
    def checked(value: Any, path: str) -> Counter[str]:
        found = _dictionary(value, path)
        if len(found) > MOST_KINDS:
            raise InvalidAnswer(f"{path} has more than {MOST_KINDS} entries")
        return Counter(
            {
                (name := printable(kind[:LONGEST_NAME])): check(one, f"{path}[{name[:40]!r}]")
                for kind, one in found.items()
            }
        )

    return checked


def _by_two_kinds(value: Any, path: str) -> Counter[tuple[str, str]]:
    nested = _by_kind(_by_kind(_count))(value, path)
    return Counter({(one, two): n for one, counts in nested.items() for two, n in counts.items()})


def _histogram(value: Any, path: str) -> Histogram:
    buckets = _list_of(_count, len(BOUNDS) + 1)
    checks = {"buckets": (buckets, list), "sum": (_number, float), "max": (_number, float)}
    found = _values(value, path, checks)
    if len(found["buckets"]) != len(BOUNDS) + 1:
        raise InvalidAnswer(f"{path}.buckets has not {len(BOUNDS) + 1} entries")
    return Histogram.from_report(found)


def _connection(value: Any, path: str) -> dict[str, Any]:
    return _values(value, path, _CONNECTION)


def _pool(value: Any, path: str) -> PoolSnapshot:
    required = ("alias", "size", "idle", "in_use", "waiting", "max_size")
    own = _values(value, path, _POOL, required)
    return PoolSnapshot(**own, counters=parse_counters(value, path))


def _interval(value: Any, path: str) -> Interval:
    return Interval(**_values(value, path, _INTERVAL))


def _answer(value: Any, path: str) -> Answer:
    return Answer(**_values(value, path, _ANSWER))


def _order(value: Any, path: str) -> OrderResult:
    return OrderResult(**_values(value, path, _ORDER))


def _by_name(value: Any, path: str) -> dict[str, float]:
    return dict(_by_kind(_number)(value, path))


def _dictionary(value: Any, path: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InvalidAnswer(f"{path or 'it'} is not a dictionary")
    return value


def _values(
    value: Any,
    path: str,
    checks: Mapping[str, tuple[Check, Callable[[], Any]]],
    required: Collection[str] = (),
) -> dict[str, Any]:
    """Return the values of the keys in *checks*, with defaults for those that are missing."""
    found, inside = _dictionary(value, path), f"{path}." if path else ""
    for key in required:
        if key not in found:
            raise ValueError(f"lacks figures that every report has: {inside}{key}")
    return {
        key: check(found[key], f"{inside}{key}") if key in found else default()
        for key, (check, default) in checks.items()
    }


_CHECKS: dict[str, tuple[Check, Callable[[], Any]]] = {
    "int": (_count, int),
    "int | None": (_or_null(_count), lambda: None),
    "float": (_number, float),
    "float | None": (_or_null(_number), lambda: None),
    "str": (_name, str),
    "str | None": (_or_null(_text), lambda: None),
    "Counter[str]": (_by_kind(_count), Counter),
    "Counter[tuple[str, str]]": (_by_two_kinds, Counter),
    "dict[str, float]": (_by_name, dict),
    "Histogram": (_histogram, Histogram),
    "list[ConnectionFigures]": (_list_of(_connection, MOST_CONNECTIONS), list),
    "list[PoolSnapshot]": (_list_of(_pool, MOST_POOLS), list),
    "list[Answer]": (_list_of(_answer, MOST_POOLS), list),
    "OrderResult | None": (_or_null(_order), lambda: None),
    "list[Interval]": (lambda value, path: _list_of(_interval, MOST_INTERVALS)(value, path), list),
}
"""By the annotation of a field: its check, and what makes the value of one that is missing."""


def _checks_of(kind: type) -> dict[str, tuple[Check, Callable[[], Any]]]:
    """Return the checks for a TypedDict or a NamedTuple, whose annotations are no plain texts."""
    return {key: _CHECKS[it.__forward_arg__] for key, it in kind.__annotations__.items()}


_CONNECTION = _checks_of(ConnectionFigures) | {"backend_pid": (_backend_pid, int)}
_COUNTERS = {counter.name: _CHECKS[str(counter.type)] for counter in fields(Counters)}
_POOL = {it.name: _CHECKS[str(it.type)] for it in fields(PoolSnapshot) if it.name != "counters"}
_INTERVAL = {it.name: _CHECKS[str(it.type)] for it in fields(Interval)}
_ANSWER = _checks_of(Answer)
_ORDER = {it.name: _CHECKS[str(it.type)] for it in fields(OrderResult)}
_REPORT = {it.name: _CHECKS[str(it.type)] for it in fields(ProcessReport)}
