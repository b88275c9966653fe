"""Tests of servers that are killed, frozen, silent or promoted, and of answers that are lost."""

from __future__ import annotations
