"""Every view of a site retried, by one line in the root URLconf."""

from __future__ import annotations

from .views.patterns import retry_requests

__all__ = ["retry_requests"]
