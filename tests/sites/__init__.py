"""Small Django projects that tests serve with real workers."""

from __future__ import annotations
