"""Tests with real servers, in the package's folders or by what is tried."""

from __future__ import annotations
