"""The names that a project may import, read from docs/reference.md."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import ModuleType

__all__ = ["NAMES", "WHOLE_MODULES", "resolve"]

_PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference.md"

NAMES = re.findall(r"^\| `(django_pooled\.[\w.]+)` \|", _PAGE.read_text(), re.MULTILINE)
"""All of them, with the module to import each from."""

WHOLE_MODULES = (
    "django_pooled",
    "django_pooled.base",
    "django_pooled.errors",
    "django_pooled.health",
    "django_pooled.metrics",
    "django_pooled.metrics.opentelemetry",
    "django_pooled.metrics.tracing",
    "django_pooled.middleware",
    "django_pooled.naming",
    "django_pooled.signals",
    "django_pooled.streaming",
    "django_pooled.testing",
    "django_pooled.urls",
)
"""The modules of which all is public that their ``__all__`` names."""


def resolve(name: str) -> object:
    """Import what a dotted name stands for: a module, or a name in one."""
    try:
        module: ModuleType = import_module(name)
    except ModuleNotFoundError:
        home, _, inner = name.rpartition(".")
        found: object = getattr(import_module(home), inner)
        return found
    return module
