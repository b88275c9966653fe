"""What an attempt writes to other databases, which a restart would not undo."""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from django.db import connections

from .riding import may_write

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from django_pooled.base import DatabaseWrapper

__all__ = ["watch_others"]


@contextmanager
def watch_others(wrapper: DatabaseWrapper, written: set[str]) -> Iterator[None]:
    """Note in *written* the aliases of other databases that something was written to.

    Whatever their engine is. A write that was rolled back there counts too: nobody tells.
    """
    others = [other for other in connections.all() if other is not wrapper]
    spies = [partial(_spy, written, other.alias) for other in others]
    for other, spy in zip(others, spies, strict=True):
        other.execute_wrappers.append(spy)
    try:
        yield
    finally:
        for other, spy in zip(others, spies, strict=True):
            other.execute_wrappers.remove(spy)


def _spy(
    written: set[str],
    alias: str,
    execute: Callable[..., Any],
    sql: Any,
    params: Any,
    many: bool,
    context: dict[str, Any],
) -> Any:
    if may_write(sql):
        written.add(alias)
    return execute(sql, params, many, context)
