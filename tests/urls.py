"""No addresses by default; tests that need some name their own."""

from __future__ import annotations

from typing import Any

urlpatterns: list[Any] = []
