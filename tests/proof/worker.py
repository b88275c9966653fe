"""A process with Django and one database, which makes calls when it is told to, line by line."""

from __future__ import annotations

import json
import os
from typing import Any

from tests.support.command_loop import obey


def main() -> None:
    """Obey, one command a line, until standard input ends."""
    import django
    from django.conf import settings

    settings.configure(
        DATABASES={"default": json.loads(os.environ["PROOF_DATABASE"])},
        INSTALLED_APPS=["django_pooled", "django_pooled.tokens"],
        DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
        USE_TZ=True,
    )
    django.setup()
    obey(Commands())


class Commands:
    """The methods that the other side calls by name; each returns what JSON can carry."""

    def __init__(self) -> None:
        from tests.proof import bank, lists, loads

        self._loads = {"calls": loads.Calls, "bank": bank.Bank, "lists": lists.Lists}
        self._supported = loads.supported
        self._load: loads.Load | None = None

    def supported(self, modes: list[str]) -> list[str]:
        """Return those that ``retry_transaction`` takes as ``commit_check``."""
        return self._supported(modes)

    def migrate(self) -> None:
        """Make whatever tables the package itself needs."""
        from django.core.management import call_command
        from django.db import connection

        call_command("migrate", verbosity=0)
        connection.close()

    def start(self, load: str, **arguments: Any) -> None:
        """Have the threads of a load begin."""
        self._load = self._loads[load](**arguments)
        self._load.start()

    def stop(self) -> None:
        """Have them end after their present call."""
        assert self._load is not None
        self._load.stop()

    def ended(self) -> bool:
        """Tell whether they have."""
        assert self._load is not None
        return self._load.ended()

    def finish(self) -> dict[str, Any]:
        """Wait for their end, and return what came of it."""
        assert self._load is not None
        self._load.join()
        return self._load.results()


if __name__ == "__main__":
    main()
