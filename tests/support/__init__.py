"""Fixtures and helpers that tests of several folders use."""

from __future__ import annotations
