"""The watch for writes to other databases keeps nothing when it ends."""

from __future__ import annotations

import gc
import weakref
from types import SimpleNamespace
from typing import Any, cast

from django_pooled.retry.other_databases import watch_others


def finalizers() -> int:
    gc.collect()
    # Not isinstance(), which a lazy object answers by being made.
    return sum(type(found) is weakref.finalize for found in gc.get_objects())


def test_calls_leave_no_finalizer_behind() -> None:
    wrapper = cast("Any", SimpleNamespace(alias="default"))

    def watch() -> None:
        with watch_others(wrapper, set()):
            pass

    watch()
    before = finalizers()
    for _ in range(20):
        watch()
    assert finalizers() < before + 20
