"""A benchmark's own site: its settings, and the gunicorn with threads that serves it."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["set_up", "threaded"]

DATABASE = "BENCHMARK_DATABASE"
"""The variable by which a process is told its database, as JSON."""


def set_up(urls: str, middleware: Sequence[str] = ()) -> None:
    """Set Django up in the process that serves.

    Args:
        urls: The module that will have the URLs.
        middleware: The site's.
    """
    import django
    from django.conf import settings

    settings.configure(
        DATABASES={"default": json.loads(os.environ[DATABASE])},
        ROOT_URLCONF=urls,
        ALLOWED_HOSTS=["*"],
        LOGGING_CONFIG=None,
        MIDDLEWARE=list(middleware),
    )
    django.setup()


@contextlib.contextmanager
def threaded(
    site: str,
    database: dict[str, Any],
    threads: int,
    *,
    first: str,
    options: Sequence[str] = (),
    package: str | None = None,
) -> Iterator[int]:
    """Serve a site by gunicorn; yields its port when it answers.

    Args:
        site: The script of the benchmark, which has a function ``site``.
        database: Of the site.
        threads: How many.
        first: The path that shows that it answers.
        options: More of gunicorn's.
        package: A folder that comes first on the path.
    """
    from _common import BENCHMARKS, PYTHONPATH, free_port

    port = free_port()
    environment = {
        **os.environ,
        DATABASE: json.dumps(database),
        "PYTHONPATH": os.pathsep.join(filter(None, [package, PYTHONPATH])),
    }
    command = [sys.executable, "-m", "gunicorn", f"--bind=127.0.0.1:{port}", "--log-level=error"]
    command += ["--worker-class=gthread", f"--threads={threads}", *options, f"{site}:site()"]
    # Where it runs comes first on its path, and must have no package.
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, cwd=BENCHMARKS)
    try:
        deadline = time.monotonic() + 60
        while True:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
            with contextlib.suppress(OSError):
                connection.request("GET", first)
                if connection.getresponse().status == 200:
                    break
            if process.poll() is not None or time.monotonic() > deadline:
                sys.exit("gunicorn does not serve the site")
            time.sleep(0.1)
        yield port
    finally:
        process.terminate()
        process.wait()
