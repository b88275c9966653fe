from __future__ import annotations

import pickle

import pytest

from django_pooled.errors import (
    AmbiguousCommit,
    CheckoutTimeout,
    ConnectFailed,
    Gauges,
    PoolClosed,
    PoolError,
    PoolExhausted,
)

GAUGES = Gauges(size=3, idle=1, in_use=2, waiting=4, max_size=5)


@pytest.mark.parametrize("kind", [CheckoutTimeout, ConnectFailed, PoolClosed, PoolExhausted])
def test_an_error_is_whole_in_another_process(kind: type[PoolError]) -> None:
    # As it comes back from a worker of multiprocessing, or out of Celery's result backend.
    error = kind("no connection", alias="shop", elapsed=1.5, gauges=GAUGES)
    error.holders = "all 2 connections are in use by shop.views.report"
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is kind
    assert str(copy) == "no connection"
    assert (copy.alias, copy.elapsed, copy.gauges) == ("shop", 1.5, GAUGES)
    assert copy.holders == error.holders


def test_a_commit_of_unknown_outcome_keeps_its_alias_in_another_process() -> None:
    copy = pickle.loads(pickle.dumps(AmbiguousCommit("lost", alias="shop")))
    assert (str(copy), copy.alias, copy.repeatable) == ("lost", "shop", False)
