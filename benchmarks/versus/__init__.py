"""Every way to have connections from Django, side by side: see ``benchmarks/alternatives.py``."""

from __future__ import annotations
