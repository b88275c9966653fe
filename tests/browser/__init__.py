"""Tests of the pages in Chromium, and what drives it."""

from __future__ import annotations
