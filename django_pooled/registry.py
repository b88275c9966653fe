"""The pools of this process, by the name under which the documentation has them."""

from __future__ import annotations

from .backend.open_at_start import open_at_start
from .pool.registry import close_all, close_pools_of, snapshots

__all__ = ["close_all", "close_pools_of", "open_at_start", "snapshots"]
