"""The example as a visitor and an operator see it: its command, its page, its form."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass, field
from html.parser import HTMLParser
from http.cookies import SimpleCookie
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import django_pooled

if TYPE_CHECKING:
    from collections.abc import Iterator

    from typing_extensions import Self

PACKAGE = Path(django_pooled.__file__).resolve().parent
MANAGE = Path(__file__).resolve().parents[2] / "example_project" / "manage.py"
FORM = "application/x-www-form-urlencoded"
ORDERS = ("freeze", "thaw", "restart", "kill", "backends", "hostage", "release", "cast")
"""The buttons of the page of the pools."""


@dataclass
class Answer:
    """One HTTP response, read to its end."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Form:
    """The page's form: where it goes, what its fields hold, which buttons it has."""

    action: str = ""
    method: str = ""
    fields: dict[str, str] = field(default_factory=dict)
    buttons: list[tuple[str, str]] = field(default_factory=list)


class Page(HTMLParser):
    """What a visitor needs of the page: the form, the tallies and the visible text."""

    def __init__(self, markup: str) -> None:
        super().__init__()
        self.form = Form()
        self.tallies: dict[str, int] = {}
        self.words: list[str] = []
        self._hidden = 0
        self.feed(markup)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        if tag in {"style", "head"}:
            self._hidden += 1
        elif tag == "form":
            self.form.action, self.form.method = values["action"], values["method"]
        elif tag == "input":
            self.form.fields[values["name"]] = values["value"]
        elif tag == "button":
            self.form.buttons.append((values["name"], values["value"]))
        if "data-tally" in values:
            self.tallies[values["data-tally"]] = int(values["data-count"])

    def handle_endtag(self, tag: str) -> None:
        if tag in {"style", "head"}:
            self._hidden -= 1

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.words.append(data)


class Visitor:
    """A browser's essentials: a kept-alive connection, cookies, and forms sent as they came."""

    def __init__(self, port: int) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        self.cookies: SimpleCookie = SimpleCookie()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.connection.close()

    def send(
        self, method: str, path: str, body: str | bytes | None = None, **headers: str
    ) -> Answer:
        """Send one request; underscores in header names stand for dashes."""
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if self.cookies:
            sent["Cookie"] = "; ".join(f"{c.key}={c.value}" for c in self.cookies.values())
        self.connection.request(method, path, body, sent)
        response = self.connection.getresponse()
        for cookie in response.headers.get_all("Set-Cookie", []):
            self.cookies.load(cookie)
        return Answer(response.status, response.headers, response.read())

    def open(self, path: str = "/") -> Page:
        """Load the page, which has to be there."""
        answer = self.send("GET", path)
        assert answer.status == 200, answer.text
        return Page(answer.text)

    def submit(self, form: Form, **headers: str) -> Answer:
        """Send the fields of a form to where it goes."""
        body = urlencode(form.fields)
        return self.send(form.method.upper(), form.action, body, Content_Type=FORM, **headers)

    def vote(self, candidate: str, **headers: str) -> Answer:
        """Load the page and press one of its buttons."""
        form = self.open().form
        assert ("candidate", candidate) in form.buttons
        form.fields["candidate"] = candidate
        return self.submit(form, **headers)

    def results(self) -> dict[str, Any]:
        """Return the page's JSON form: ``tallies`` and ``latest``."""
        found: dict[str, Any] = self.send("GET", "/", Accept="application/json").json
        return found


class Operator(Visitor):
    """Whoever ran ``serve``, with the page of the pools open."""

    def come_in(self, site: Site) -> Answer:
        """Use the address that ``serve`` printed."""
        entered = self.send("GET", "/" + site.entrance.split("/", 3)[3])
        assert (entered.status, entered.headers["Location"]) == (302, "/pools/")
        return self.send("GET", "/pools/")

    def press(self, order: str, seconds: float | None = None, **headers: str) -> Answer:
        """Press one of the buttons."""
        body = urlencode({} if seconds is None else {"seconds": seconds})
        token = {"X_CSRFToken": self.cookies["csrftoken"].value}
        sent = {"Content_Type": FORM, "Accept": "application/json"} | token | headers
        return self.send("POST", f"/pools/faults/{order}/", body, **sent)

    def order(self, order: str, seconds: float | None = None) -> None:
        """Press a button, which has to be possible."""
        answer = self.press(order, seconds)
        assert answer.status == 202, answer.text

    @property
    def state(self) -> dict[str, Any]:
        """What the page shows."""
        answer = self.send("GET", "/pools/faults/")
        assert answer.status == 200, answer.text
        found: dict[str, Any] = answer.json
        return found

    def reads(self, words: str) -> bool:
        """Whether one of the latest events says so."""
        return any(words in event["text"] for event in self.state["events"][-4:])


class Site:
    """A running ``manage.py serve``, with all that it prints."""

    def __init__(self, folder: Path, *arguments: str, **variables: str) -> None:
        self.environment = environment(folder, **variables)
        self.process = subprocess.Popen(
            [sys.executable, str(MANAGE), "serve", "--port", "0", *arguments],
            cwd="/",
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # As in a terminal of its own, where Ctrl-C goes to the whole foreground group.
            start_new_session=True,
        )
        self.lines: list[str] = []
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def output(self) -> str:
        with self._changed:
            return "".join(self.lines)

    @property
    def port(self) -> int:
        found = re.search(r"http://\S+:(\d+)/", self.output)
        assert found, self.output
        return int(found[1])

    @property
    def entrance(self) -> str:
        """The address that lets an operator in."""
        found = re.search(r"http://\S+/pools/enter/\?key=\S+", self.output)
        assert found, self.output
        return found[0]

    def connection_url(self) -> str:
        """Return the address of its embedded server, as other commands find it."""
        return (Path(self.environment["EXAMPLE_FOLDER"]) / "url").read_text()

    def says(self, words: str, within: float = 90.0) -> None:
        """Wait until ``words`` are printed."""
        with self._changed:
            self._changed.wait_for(
                lambda: any(words in line for line in self.lines) or not self._reader.is_alive(),
                within,
            )
        assert words in self.output, self.output

    def signal(self, number: int = signal.SIGINT) -> None:
        """Press Ctrl-C, or what else ``number`` stands for."""
        os.killpg(self.process.pid, number)

    def end(self, within: float = 60.0) -> int:
        """Wait for the end and return the exit code."""
        code = self.process.wait(within)
        self._reader.join(within)
        if self.process.stdout is not None:
            self.process.stdout.close()
        return code

    def manage(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run another management command beside it, as in a second terminal."""
        return manage(*arguments, env=self.environment)

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._changed:
                self.lines.append(line)
                self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()


@contextlib.contextmanager
def new_folder() -> Iterator[Path]:
    """Make a folder that another user can pass through, as root's server has to; remove it."""
    with tempfile.TemporaryDirectory(prefix="example-", ignore_cleanup_errors=True) as name:
        Path(name).chmod(0o711)
        yield Path(name) / "kept"


@contextlib.contextmanager
def serving(folder: Path, *arguments: str, **variables: str) -> Iterator[Site]:
    """Run ``manage.py serve`` until the end of the block, which it has to end well."""
    site = Site(folder, *arguments, **variables)
    try:
        site.says("Ctrl-C stops everything")
        yield site
    finally:
        if site.process.poll() is None:
            site.signal()
        try:
            site.end()
        except subprocess.TimeoutExpired:
            site.process.kill()
            site.end()
            raise


def manage(*arguments: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a management command of the example to its end."""
    return subprocess.run(
        [sys.executable, str(MANAGE), *arguments],
        cwd="/",
        env=env,
        capture_output=True,
        text=True,
        timeout=90,
    )


def environment(folder: Path, **variables: str) -> dict[str, str]:
    """Return what the example's processes need to know: ``variables``, and none of the tests'."""
    ours = ("DATABASE_URL", "DJANGO_", "EXAMPLE_", "POOL_", "GUNICORN_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    if binaries := os.environ.get("DJANGO_POOLED_POSTGRES_BIN"):
        kept["DJANGO_POOLED_POSTGRES_BIN"] = binaries
    kept["EXAMPLE_FOLDER"] = str(folder)
    # The package under test, installed or not.
    kept["PYTHONPATH"] = os.pathsep.join(
        [str(PACKAGE.parent), *filter(None, [kept.get("PYTHONPATH")])]
    )
    return kept | variables


def descendants(pid: int) -> set[int]:
    """Return the pids of all processes below one."""
    children: dict[int, list[int]] = {}
    for child, parent, _ in _processes():
        children.setdefault(parent, []).append(child)
    found: set[int] = set()
    waiting = [pid]
    while waiting:
        below = children.get(waiting.pop(), [])
        found.update(below)
        waiting += below
    return found


def alive(pids: set[int]) -> set[int]:
    """Return those of ``pids`` that still run; a zombie that init has yet to reap doesn't."""
    return {pid for pid, _, state in _processes() if pid in pids and state not in "ZX"}


def _processes() -> Iterator[tuple[int, int, str]]:
    """Yield pid, parent and state of every process; slim containers have no ps."""
    if sys.platform == "linux":
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
                yield int(folder.name), int(parent), state
    else:
        table = subprocess.check_output(["ps", "-A", "-o", "pid=,ppid=,state="], text=True)
        for line in table.splitlines():
            pid, parent, state = line.split()
            yield int(pid), int(parent), state[0]
