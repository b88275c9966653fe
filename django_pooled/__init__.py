"""Connection pool and transaction retry for Django on PostgreSQL."""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .errors import (
        AmbiguousCommit,
        CheckoutTimeout,
        ConnectFailed,
        DeadlineExceeded,
        PoolClosed,
        PoolError,
        PoolExhausted,
    )
    from .pool.backoff import Backoff
    from .pool.deadline import deadline, retry_deadline
    from .pool.lane_context import lane
    from .retry.decorator import arun_transaction, retry_transaction, run_transaction
    from .views.marks import no_retry

__all__ = [
    "AmbiguousCommit",
    "Backoff",
    "CheckoutTimeout",
    "ConnectFailed",
    "DeadlineExceeded",
    "PoolClosed",
    "PoolError",
    "PoolExhausted",
    "arun_transaction",
    "deadline",
    "lane",
    "no_retry",
    "retry_deadline",
    "retry_transaction",
    "run_transaction",
]

_HOME = {
    **dict.fromkeys(__all__, "errors"),
    "Backoff": "pool.backoff",
    "deadline": "pool.deadline",
    "retry_deadline": "pool.deadline",
    "lane": "pool.lane_context",
    "no_retry": "views.marks",
    "arun_transaction": "retry.decorator",
    "retry_transaction": "retry.decorator",
    "run_transaction": "retry.decorator",
}


def __getattr__(name: str) -> object:
    # Imported on first use: the package is loaded as an ENGINE and as an app, before settings
    # are complete and where neither name is wanted.
    if name in _HOME:
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
