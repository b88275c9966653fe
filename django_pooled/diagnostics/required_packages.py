"""The packages that the engine cannot do without, asked for before they are imported."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec

from django.core.exceptions import ImproperlyConfigured

__all__ = ["INSTALL", "missing_package", "refusal"]

_PACKAGES = {"psycopg": "psycopg 3", "psycopg_pool": "psycopg_pool", "tenacity": "tenacity"}

INSTALL = "pip install 'psycopg[binary]' psycopg-pool tenacity"


def missing_package() -> ImportError | None:
    """Return the error of the first package that cannot be imported; its message tells which."""
    for name, title in _PACKAGES.items():
        try:
            import_module(name)
        except ImportError as error:
            words = f"django_pooled needs {title}: {error}"
            # Found, not imported: whether it works is not of interest.
            if name == "psycopg" and find_spec("psycopg2"):
                words += " (psycopg2 is installed, which it does not use)"
            missing = ImportError(words)
            missing.__cause__ = error
            return missing
    return None


def refusal(missing: ImportError) -> ImproperlyConfigured:
    """Make the error for a package that is missing.

    Not an ImportError, which Django answers with a list of its own backends.
    """
    error = ImproperlyConfigured(f"{missing}. {INSTALL}")
    error.__cause__ = missing.__cause__
    return error
