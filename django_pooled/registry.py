"""The pools of this process, by the name under which the documentation has them."""

from __future__ import annotations

from .pool.registry import close_all, close_pools_of, snapshots

__all__ = ["close_all", "close_pools_of", "snapshots"]
