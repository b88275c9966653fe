"""Starts servers for the site that need other commands than the usual ones."""

from __future__ import annotations

import contextlib
import functools
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from embedded_postgres import free_port
from tests.sites.workers import running
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["uwsgi", "uwsgi_can_do_without_threads", "uwsgi_program"]


def uwsgi_program() -> Path:
    """Return where uWSGI would be installed; $UWSGI names another one."""
    return Path(os.environ.get("UWSGI") or Path(sys.executable).with_name("uwsgi"))


@functools.cache
def uwsgi_can_do_without_threads() -> bool:
    """Tell whether threads sleep between requests unless enabled: in 2.0.26, not in 2.0.31."""
    if not uwsgi_program().exists():
        return False
    told = subprocess.run([uwsgi_program(), "--help"], capture_output=True, text=True, timeout=30)
    return "this is true by default" not in told.stdout + told.stderr


@contextlib.contextmanager
def uwsgi(
    url: str, *options: str, settings: dict[str, str] | None = None, **pool: object
) -> Iterator[running.Site]:
    """Run the site under uWSGI with two workers, loaded before they are forked.

    Args:
        url: the site's database.
        options: uWSGI's own.
        settings: what ``process_life.settings`` reads.
        pool: options of the pool.
    """
    command = ["tests.sites.processes.serving", f"--http-socket=127.0.0.1:{free_port()}"]
    command += ["--module=tests.sites.workers.wsgi", "--need-app", "--master", "--processes=2"]
    # As other servers do at SIGTERM; by itself uWSGI reloads.
    command += ["--die-on-term", f"--virtualenv={sys.prefix}", "--disable-logging", *options]
    env = {**running.environment(url, **pool), **(settings or {})}
    env["DJANGO_SETTINGS_MODULE"] = "tests.sites.processes.settings"
    with tempfile.TemporaryDirectory() as folder:
        site = running.Site(command, env, Path(folder) / "log")
        try:
            wait_until(lambda: "spawned uWSGI worker" in site.log)
            yield site
        finally:
            site.kill()


def _become_uwsgi(options: list[str]) -> None:
    (address,) = [option for option in options if option.startswith("--http-socket=")]
    # Where the tests look for it in the log.
    sys.stdout.write(f"http://{address.partition('=')[2]}\n")
    sys.stdout.flush()
    os.execv(uwsgi_program(), ["uwsgi", *options])


if __name__ == "__main__":
    _become_uwsgi(sys.argv[1:])
