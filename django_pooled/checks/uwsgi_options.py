"""How uWSGI will run the site, as far as another process can know: its environment variables."""

# https://uwsgi-docs.readthedocs.io/en/latest/Configuration.html

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from django.utils.version import get_version_tuple

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["UwsgiOptions", "has_threads_by_itself", "read"]

# Any of these names an application in Python; UWSGI_VERSION in an image says nothing.
_RUNS_PYTHON = {"module", "wsgi", "wsgi-file", "mount"}

# More options are where these lead to.
_ELSEWHERE = {"include", "import", "inherit", "xml", "yaml", "yml", "json", "config", "emperor"}

_THREADS_BY_ITSELF = (2, 0, 31)


class UwsgiOptions(NamedTuple):
    """uWSGI's options."""

    values: dict[str, str]
    whole: bool
    """Whether they are all of them, but for the command line's."""

    @property
    def processes(self) -> int:
        """Processes that serve requests."""
        return self.number("processes", "workers") or 1

    @property
    def threads(self) -> int | None:
        """Threads of each, None where a file that was not read may say more."""
        return self.number("threads") or (1 if self.whole else None)

    @property
    def enables_threads(self) -> bool:
        """Whether Python's own threads run between requests."""
        return "threads" in self.values or _is_on(self.values.get("enable-threads", "false"))

    def number(self, *names: str) -> int | None:
        """Return the first of these options that is a number."""
        found = [self.values[name] for name in names if name in self.values]
        return next((int(value) for value in found if value.isdecimal()), None)


def read(environment: Mapping[str, str]) -> UwsgiOptions | None:
    """Return the options, or None if nothing says that uWSGI runs a site in Python.

    They are the variables that start with ``UWSGI_``, and what is in the file that
    ``UWSGI_INI`` names.
    """
    given = {
        name.removeprefix("UWSGI_").lower().replace("_", "-"): value
        for name, value in environment.items()
        if name.startswith("UWSGI_")
    }
    values, whole = dict(given), True
    ini = values.pop("ini", None)
    if ini is not None:
        try:
            text = Path(ini).read_text(encoding="utf-8", errors="replace")
        except OSError:
            whole = False
        else:
            values = {**_parse(text), **values}
    if not (ini or _RUNS_PYTHON & set(values)):
        return None
    return UwsgiOptions(values, whole and not ({"ini"} | _ELSEWHERE) & set(values))


def has_threads_by_itself() -> bool:
    """Tell whether the installed uWSGI enables threads unasked, as 2.0.31 and later do."""
    for package in ("uWSGI", "pyuwsgi"):
        try:
            return get_version_tuple(version(package))[:3] >= _THREADS_BY_ITSELF
        except PackageNotFoundError:
            continue
    return False


def _parse(text: str) -> dict[str, str]:
    # Not configparser's: options are repeated, and may stand before any section.
    values, section = {}, "uwsgi"
    for line in text.splitlines():
        if match := re.match(r"\s*\[([^]]*)\]", line):
            section = match[1].strip()
        elif section == "uwsgi" and (match := re.match(r"\s*([\w-]+)\s*=\s*(.*?)\s*$", line)):
            values[match[1]] = match[2]
    return values


def _is_on(value: str) -> bool:
    return value.lower() not in ("false", "0", "no", "off")
