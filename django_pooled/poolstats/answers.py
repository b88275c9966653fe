"""What a process may answer: types and ranges of everything, checked once, where it is read."""

from __future__ import annotations

import json
from dataclasses import fields
from math import isfinite
from typing import TYPE_CHECKING, Any

from django_pooled.diagnostics.redaction import one_line, printable
from django_pooled.stats.counters import Counters
from django_pooled.stats.snapshot import (
    REPORT_VERSION,
    ConnectionFigures,
    PoolSnapshot,
    ProcessReport,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping
    from typing import TypeAlias

    Check: TypeAlias = Callable[[Any, str], Any]
    """Takes a value and its place in the answer; returns it, or raises Nonsense."""

__all__ = ["LARGEST_ANSWER", "Nonsense", "check_counters", "parse_report"]

LARGEST_ANSWER = 4 * 1024 * 1024
"""Bytes; a longer answer is not one of ours: a pool of ten connections takes five thousand."""

MOST = 2**53 - 1
"""The largest whole number that every program reads as it is written."""

LONGEST = 1e15
"""Seconds; more than all times of a site add up to."""

MOST_POOLS = 10_000
MOST_CONNECTIONS = 10_000
MOST_KINDS = 500
LONGEST_NAME = 300
"""Characters; what is longer is cut."""


class Nonsense(ValueError):
    """Something in an answer that no process of ours says; the message names its place."""


def _count(value: Any, place: str) -> int:
    # A bool is an int too.
    if type(value) is not int or not 0 <= value <= MOST:
        raise Nonsense(f"{place} is not a whole number between 0 and 2^53")
    return value


def _number(value: Any, place: str) -> float:
    # Compared before it is made a float, which not every int can be.
    if (
        not isinstance(value, (int, float))
        or isinstance(value, bool)
        or not -1 <= value <= LONGEST
        or not isfinite(value)
    ):
        raise Nonsense(f"{place} is not a number between 0 and 10^15")
    # A clock that is read twice may make it a little less than 0.
    return max(0.0, value)


def _name(value: Any, place: str) -> str:
    if not isinstance(value, str):
        raise Nonsense(f"{place} is not a text")
    return printable(value[:LONGEST_NAME])


def _text(value: Any, place: str) -> str:
    return one_line(value) if isinstance(value, str) else _name(value, place)


def _or_null(check: Check) -> Check:
    return lambda value, place: None if value is None else check(value, place)


def _list_of(check: Check, most: int) -> Check:
    def checked(value: Any, place: str) -> list[Any]:
        if not isinstance(value, list):
            raise Nonsense(f"{place} is not a list")
        if len(value) > most:
            raise Nonsense(f"{place} has more than {most} entries")
        return [check(one, f"{place}[{number}]") for number, one in enumerate(value)]

    return checked


def _by_kind(check: Check) -> Check:
    def checked(value: Any, place: str) -> dict[str, Any]:
        found = _dictionary(value, place)
        if len(found) > MOST_KINDS:
            raise Nonsense(f"{place} has more than {MOST_KINDS} entries")
        return {
            (name := printable(kind[:LONGEST_NAME])): check(one, f"{place}[{name[:40]!r}]")
            for kind, one in found.items()
        }

    return checked


def _record(checks: Mapping[str, Check], required: Collection[str] = ()) -> Check:
    """Check what is known of a dictionary, and leave the rest out.

    Another version may have less, and more.
    """

    def checked(value: Any, place: str) -> dict[str, Any]:
        found, inside = _dictionary(value, place), f"{place}." if place else ""
        for key in required:
            if key not in found:
                raise ValueError(f"lacks figures that every report has: {inside}{key}")
        return {
            key: check(found[key], f"{inside}{key}")
            for key, check in checks.items()
            if key in found
        }

    return checked


def _dictionary(value: Any, place: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Nonsense(f"{place or 'it'} is not a dictionary")
    return value


_CHECKS: dict[str, Check] = {
    "int": _count,
    "float": _number,
    "float | None": _or_null(_number),
    "str": _name,
    "str | None": _or_null(_text),
    "Counter[str]": _by_kind(_count),
    "Counter[tuple[str, str]]": _by_kind(_by_kind(_count)),
    "Histogram": _record(
        {"count": _count, "sum": _number, "max": _number, "buckets": _list_of(_count, 1000)}
    ),
}
"""By what the definitions of a report, a pool and a connection say that they are."""


def _checks(annotations: Mapping[str, Any], **own: Check) -> dict[str, Check]:
    # In a TypedDict they are no plain texts.
    found = {key: getattr(it, "__forward_arg__", it) for key, it in annotations.items()}
    return {key: own.get(key) or _CHECKS[it] for key, it in found.items()}


_connection = _record(_checks(ConnectionFigures.__annotations__))
_counters = _checks({counter.name: counter.type for counter in fields(Counters)})
_pool = _record(
    _checks(
        {it.name: it.type for it in fields(PoolSnapshot) if it.name != "counters"},
        connections=_list_of(_connection, MOST_CONNECTIONS),
    )
    | _counters,
    required=("alias", "size", "idle", "in_use", "waiting", "max_size"),
)
_report = _record(
    _checks(ProcessReport.__annotations__, pools=_list_of(_pool, MOST_POOLS)),
    required=("pid", "command", "pools"),
)


def check_counters(value: object, place: str) -> dict[str, Any]:
    """Return what a pool has counted, as a report has it.

    Raises:
        Nonsense: It is something else.
    """
    checked: dict[str, Any] = _record(_counters)(value, place)
    return checked


def parse_report(answer: bytes) -> ProcessReport:
    """Return the report of a process, of which everything is what it should be.

    Texts are without what a terminal would act upon; keys that are not known are left out.

    Raises:
        Nonsense: Something in it is not; the message completes "Process 1 answered nonsense:".
        ValueError: It is no report that could be read; the message completes "an answer that".
    """
    if not answer:
        raise ValueError("is empty")
    if len(answer) > LARGEST_ANSWER:
        raise ValueError(f"is longer than {LARGEST_ANSWER} bytes")
    try:
        report = json.loads(answer, parse_constant=_refuse)
    except Nonsense:
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
    checked: ProcessReport = _report(report, "")
    return checked


def _refuse(constant: str) -> float:
    raise Nonsense(f"{constant} is no number")
