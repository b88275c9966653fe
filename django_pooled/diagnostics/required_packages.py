"""The packages that the engine cannot do without, asked for before they are imported."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec

from django.core.exceptions import ImproperlyConfigured

__all__ = ["MissingPackage", "missing_package", "refusal"]

_PACKAGES = {"psycopg": "psycopg 3", "psycopg_pool": "psycopg_pool", "tenacity": "tenacity"}

_NEEDED_LATER = frozenset({"tenacity"})
"""Pure Python, and not needed before a connection is: looked for, and not imported."""

_INSTALL = "pip install 'psycopg[binary]' psycopg-pool tenacity"
_INSTALL_LIBPQ = (
    "pip install 'psycopg[binary]', or, where that has no wheel for this Python, install the "
    "system's libpq (on Debian and Ubuntu libpq5)"
)


class MissingPackage(ImportError):
    """A package that cannot be imported; the message tells which.

    Args:
        words: The message.
        remedy: What brings the package.
    """

    def __init__(self, words: str, remedy: str = _INSTALL) -> None:
        super().__init__(words)
        self.remedy = remedy


def missing_package() -> MissingPackage | None:
    """Return the error of the first package that cannot be imported."""
    for name, title in _PACKAGES.items():
        try:
            if name not in _NEEDED_LATER or find_spec(name) is None:
                import_module(name)
        except ImportError as error:
            missing = _missing(name, title, error)
            missing.__cause__ = error
            return missing
    return None


def refusal(missing: MissingPackage) -> ImproperlyConfigured:
    """Make the error for a package that is missing.

    Not an ImportError, which Django answers with a list of its own backends.
    """
    error = ImproperlyConfigured(f"{missing}. {missing.remedy}")
    error.__cause__ = missing.__cause__
    return error


def _missing(name: str, title: str, error: ImportError) -> MissingPackage:
    if name == "psycopg" and not isinstance(error, ModuleNotFoundError):
        # psycopg is there. It loads libpq as it is imported, and tells in a list where it looked:
        # https://www.psycopg.org/psycopg3/docs/basic/install.html
        lines = [line.removeprefix("- ").rstrip(".") for line in str(error).splitlines()]
        tried = "; ".join(line for line in lines if line != "Attempts made:")
        return MissingPackage(
            "django_pooled needs libpq, the client library of PostgreSQL, which psycopg 3 could "
            f"not load: {tried}",
            _INSTALL_LIBPQ,
        )
    words = f"django_pooled needs {title}: {error}"
    # Found, not imported: whether it works is not of interest.
    if name == "psycopg" and find_spec("psycopg2"):
        words += " (psycopg2 is installed, which it does not use)"
    return MissingPackage(words)
