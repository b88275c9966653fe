"""poolstats --watch: in a real terminal, with its keys, its signals and its end."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import shutil
import signal
import sys
import tempfile
import termios
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest

from django_pooled.poolstats import terminal as terminal_module
from django_pooled.poolstats.tables.overview_table import Layout
from django_pooled.poolstats.terminal import Ended, Terminal
from django_pooled.poolstats.watch import Watch
from tests.integration.poolstats.test_command import Site
from tests.support.reports import connection, overview, pool, process, times
from tests.support.terminal import Screen
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from django_pooled.poolstats.observer import Observer
    from django_pooled.poolstats.overview import Overview
    from embedded_postgres import EmbeddedServer

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no terminals of Unix")

KEYS = "q quit  s sort (waiting)  p processes  c connections  r reset  ? help"


@pytest.fixture
def site(server: EmbeddedServer) -> Iterator[Site]:
    """A site that publishes in a folder of its own, with one process."""
    folder = Path(tempfile.mkdtemp(prefix="stats-", dir="/tmp"))
    made = Site(folder, server)
    made.publish({"in_use": 3})
    yield made
    made.close()
    shutil.rmtree(folder)


@pytest.fixture
def watch(site: Site) -> Iterator[Callable[..., Screen]]:
    """Start the command in a terminal, and wait for its first frame."""
    screens: list[Screen] = []

    def start(*arguments: str, command: list[str] | None = None, **terminal: Any) -> Screen:
        command = command or site.command("--watch", "0.2", *arguments)
        screens.append(Screen(command, site.environment, **terminal))
        return screens[-1]

    yield start
    for screen in screens:
        screen.close()


def title(text: str) -> bool:
    return "database, process" in text and KEYS in text


# In a real terminal


def test_q_ends_it_and_all_is_as_before(watch: Callable[..., Screen], site: Site) -> None:
    screen = watch()
    seen = screen.shows(title)
    assert f"default, {site.publishers[0].pid} " in seen
    assert "3/10  30%" in seen
    assert not screen.is_as_before
    assert not screen.mode()[3] & termios.ECHO
    # Redrawn in place: there is one of everything.
    drawn = screen.raw.count(b"\x1b[H")
    wait_until(lambda: (screen.lines, screen.raw.count(b"\x1b[H") > drawn + 3)[1])
    assert screen.text.count("database, process") == 1
    assert screen.lines[29] == KEYS
    screen.press("q")
    assert screen.ends() == 0
    assert screen.is_as_before


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, -15), (signal.SIGHUP, -1)]
)
def test_a_signal_ends_it_and_all_is_as_before(
    watch: Callable[..., Screen], number: signal.Signals, code: int
) -> None:
    screen = watch()
    screen.shows(title)
    if number == signal.SIGINT:
        screen.press("\x03")
    else:
        screen.process.send_signal(number)
    assert screen.ends() == code
    assert screen.is_as_before
    assert "Traceback" not in screen.text


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs a shell with job control")
def test_ctrl_z_gives_the_terminal_to_the_shell_until_fg(
    watch: Callable[..., Screen], site: Site
) -> None:
    screen = watch(command=["bash", "--norc", "--noprofile", "-i"])
    screen.press(f"PS1='at the sh''ell> '; {' '.join(site.command('--watch', '0.2'))}\n")
    screen.shows(title)
    screen.press("\x1a")
    screen.shows("at the shell>")
    assert screen.raw.rfind(b"\x1b[?1049l") > screen.raw.rfind(b"\x1b[?1049h")
    frames = screen.raw.count(b"\x1b[?1049h")
    screen.press("fg\n")
    wait_until(lambda: (screen.text, screen.raw.count(b"\x1b[?1049h") > frames)[1])
    screen.shows(title)
    screen.press("q")
    wait_until(lambda: (screen.text, screen.raw.rfind(b"l> ") > screen.raw.rfind(b"1049l"))[1])
    screen.press("exit 7\n")
    assert screen.ends() == 7


def test_it_takes_the_terminal_again_when_it_goes_on_after_a_stop_that_it_was_not_told_of(
    watch: Callable[..., Screen],
) -> None:
    screen = watch()
    screen.shows(title)
    screen.process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, screen.process.pid, os.WSTOPPED)
    termios.tcsetattr(screen.terminal, termios.TCSANOW, screen.before)
    screen.process.send_signal(signal.SIGCONT)
    wait_until(lambda: not screen.mode()[3] & termios.ECHO)
    screen.press("?")
    screen.shows("this help")
    screen.press(" q")
    assert screen.ends() == 0
    assert screen.is_as_before


def test_it_fits_the_window_when_that_changes(watch: Callable[..., Screen]) -> None:
    screen = watch(lines=16)
    screen.shows(title)
    screen.resize(70, 12)
    seen = screen.shows(lambda text: "answered" in text.splitlines()[0])
    # A line that is too long would have been continued on the next.
    assert seen.splitlines()[11] == KEYS
    assert "database, process" in seen


def test_keys_work_while_a_process_does_not_answer(
    watch: Callable[..., Screen], site: Site
) -> None:
    site.publish().freeze()
    screen = watch("--timeout", "60")
    screen.shows("Looking ...")
    screen.press("?")
    screen.shows("this help")
    screen.press("q")
    screen.shows("Looking ...")
    screen.press("q")
    assert screen.ends(timeout=20.0) == 0


def test_without_a_keyboard_it_redraws_until_ctrl_c(watch: Callable[..., Screen]) -> None:
    screen = watch(keyboard=False)
    screen.shows(title)
    screen.press("q")
    drawn = screen.raw.count(b"\x1b[H")
    wait_until(lambda: (screen.lines, screen.raw.count(b"\x1b[H") > drawn + 3)[1])
    screen.process.send_signal(signal.SIGINT)
    assert screen.ends() == 0
    assert screen.is_as_before


def test_a_terminal_that_can_do_nothing_gets_one_look_below_the_other(
    watch: Callable[..., Screen], site: Site
) -> None:
    command = ["env", "TERM=dumb", *site.command("--watch", "0.1", "--no-color")]
    screen = watch(command=command, lines=100)
    screen.shows(lambda text: text.count("database, process") > 2)
    assert b"\x1b" not in screen.raw
    screen.press("\x03")
    assert screen.ends() == 0


# The picture


class Watched(Watch):
    """One that is given its looks by hand."""

    def __init__(self, *looks: Overview, **layout: Any) -> None:
        super().__init__(cast("Observer", None), 1.0, Layout(**layout))
        for number, look in enumerate(looks):
            look.taken = 1000.0 + number
            self.add(look)

    def seen(self, columns: int = 100, height: int = 30) -> list[str]:
        lines = self.frame(columns, height)
        assert len(lines) == height
        assert max(map(len, lines)) <= columns
        return lines


def many(number: int, **figures: Any) -> Overview:
    return overview(
        *(process(pool(waiting=pid % 10, **figures), pid=pid) for pid in range(1, number + 1))
    )


def pids(lines: list[str]) -> list[str]:
    return [match[1] for line in lines if (match := re.match(r"  (\d+) gunicorn ", line))]


def test_rates_and_percentiles_are_those_since_the_last_look() -> None:
    first = overview(process(pool(checkouts=7, wait=times(*[5.0] * 7))))
    second = overview(process(pool(checkouts=37, wait=times(*[5.0] * 7, *[0.001] * 30))))
    seen = Watched(first, second).seen()
    (line,) = [line for line in seen if line.startswith("default, ")]
    assert line.split()[8] == "30.0"
    assert "1.0 ms" in line
    assert "5.0 s" not in line


def test_before_the_second_look_they_are_since_the_pools_were_opened() -> None:
    seen = Watched(overview()).seen()
    assert any(" done " in line for line in seen)


def test_a_reset_counts_from_then_on() -> None:
    watched = Watched(overview(process(pool(connects=50))))
    assert not Watched().press("r")
    assert watched.press("r")
    later = overview(process(pool(connects=53)))
    later.taken = 1060.0
    watched.add(later)
    seen = "\n".join(watched.seen())
    assert '"default" in the last 60 s' in seen
    assert "opened            3 connections" in seen
    assert "counting since the reset" in seen


@pytest.mark.parametrize(
    ("keys", "order", "first"),
    [
        ("", "waiting", "9"),
        ("s", "in use", "7"),
        ("ss", "checkouts", "3"),
        ("sss", "wait p99", "5"),
        ("ssss", "pid", "1"),
        ("S", "pid", "1"),
        ("sssss", "waiting", "9"),
    ],
)
def test_processes_are_sorted_by_what_the_keys_choose(keys: str, order: str, first: str) -> None:
    busy: dict[int, dict[str, Any]] = {
        7: {"in_use": 9},
        3: {"checkouts": 5000},
        5: {"wait": times(0.5)},
    }
    look = overview(
        *(process(pool(waiting=pid % 10, **busy.get(pid, {})), pid=pid) for pid in range(1, 13))
    )
    watched = Watched(look)
    for key in keys:
        assert watched.press(key)
    seen = watched.seen(height=60)
    assert pids(seen)[0] == first
    assert f"s sort ({order})" in seen[-1]


def test_every_process_is_shown_on_demand() -> None:
    watched = Watched(many(12))
    assert len(pids(watched.seen(height=60))) == 5
    assert "  ... and 7 more (p shows all)" in watched.seen(height=60)
    watched.press("p")
    assert len(pids(watched.seen(height=60))) == 12
    watched.press("p")
    assert len(pids(watched.seen(height=60))) == 5


def test_connections_are_shown_on_demand() -> None:
    held = connection(55, state="in use", by="votes.views.cast")
    watched = Watched(overview(process(pool(connections=[held]))))
    assert "votes.views.cast" not in "\n".join(watched.seen())
    watched.press("c")
    assert "votes.views.cast" in "\n".join(watched.seen())
    assert "in use for" not in "\n".join(watched.seen())


@pytest.mark.parametrize("height", [30, 24, 20, 16])
def test_what_does_not_fit_is_left_out_the_least_busy_processes_first(height: int) -> None:
    watched = Watched(many(40))
    seen = watched.seen(height=height)
    assert seen[-1] == KEYS
    assert pids(seen)[0] == "9"
    assert any(line.startswith("default, 40 processes") for line in seen)
    assert any("connections used" in line for line in seen)
    # Details make room only for a few processes.
    shown = any("in use for" in line for line in seen)
    assert shown == (height >= 20)
    assert "" not in seen[seen.index(next(line for line in seen if "  39 " in line)) :][:2]


@pytest.mark.parametrize("columns", [1, 15, 40])
@pytest.mark.parametrize("keys", ["", "c", "?"])
def test_a_window_may_be_as_small_as_it_likes(columns: int, keys: str) -> None:
    held = connection(55, state="in use", by="votes.views.cast", pinned_by="SET")
    watched = Watched(many(40, connections=[held], last_error="refused", last_error_age=1.0))
    for key in keys:
        watched.press(key)
    for height in (1, 2, 10):
        lines = watched.frame(columns, height)
        assert len(lines) <= height
        assert max(map(len, lines)) <= columns


def test_who_wants_all_processes_gets_them_in_place_of_the_details() -> None:
    watched = Watched(many(40))
    watched.press("p")
    seen = watched.seen(height=30)
    assert len(pids(seen)) > 12
    assert not any("in use for" in line for line in seen)
    assert "  sessions" in seen[28]


def test_a_window_that_is_much_too_small_says_how_much_is_missing() -> None:
    seen = Watched(many(40)).seen(columns=40, height=5)
    assert seen[3].startswith("... and ")
    assert seen[4].startswith("q quit")


def test_help_goes_away_with_any_key() -> None:
    watched = Watched(overview())
    watched.press("?")
    assert watched.frame(100, 30)[0].startswith("q        quit")
    assert watched.press("x")
    assert not watched.press("x")
    assert watched.seen()[-1] == KEYS


def test_findings_look_back_for_ten_seconds() -> None:
    looks = [overview(process(pool(timeouts=1 if number else 0))) for number in range(25)]
    watched = Watched(*looks[:5])
    assert "1 timed out." in "\n".join(watched.seen())
    watched = Watched(*looks)
    assert "1 timed out." not in "\n".join(watched.seen())
    assert len(watched._looks) <= 12


# By itself


@pytest.fixture
def keyboard() -> Iterator[tuple[int, int]]:
    """Both ends of a terminal: what is written to the first is typed at the second."""
    ends = pty.openpty()
    yield ends
    for end in ends:
        with contextlib.suppress(OSError):
            os.close(end)


class Looks:
    """In place of an observer."""

    def __init__(self, *looks: Overview | BaseException) -> None:
        self.looks = list(looks)

    def take(self) -> Overview:
        look = self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]
        if isinstance(look, BaseException):
            raise look
        look.taken = time.monotonic()
        return look


def run(looks: Looks, keyboard: int) -> str:
    """Watch until the end, and return what was written."""
    written: list[str] = []
    with Terminal(written.append, keyboard) as terminal:
        Watch(cast("Observer", looks), 0.05, Layout()).run(terminal)
    return "".join(written)


def test_what_a_look_raises_is_raised_when_the_terminal_is_as_before(
    keyboard: tuple[int, int],
) -> None:
    before = termios.tcgetattr(keyboard[1])
    with pytest.raises(ZeroDivisionError, match="look"):
        run(Looks(ZeroDivisionError("of the look")), keyboard[1])
    assert termios.tcgetattr(keyboard[1]) == before


def test_a_space_looks_at_once(keyboard: tuple[int, int]) -> None:
    looks = Looks(*(overview() for _ in range(3)), KeyboardInterrupt())
    written: list[str] = []
    watch = Watch(cast("Observer", looks), 3600.0, Layout())

    def press(text: str) -> None:
        written.append(text)
        if "database" in text:
            os.write(keyboard[0], b" ")

    with Terminal(press, keyboard[1]) as terminal, pytest.raises(KeyboardInterrupt):
        watch.run(terminal)
    assert sum("database" in text for text in written) == 3


def test_keys_are_read_one_by_one(keyboard: tuple[int, int]) -> None:
    with Terminal(lambda text: None, keyboard[1]) as terminal:
        os.write(keyboard[0], b"ab")
        assert [terminal.key(5.0), terminal.key(5.0)] == ["a", "b"]
        assert terminal.key(0.0) == ""


def test_a_platform_without_some_signals_has_keys_all_the_same(
    keyboard: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(signal, "SIGWINCH")
    with Terminal(lambda text: None, keyboard[1]) as terminal:
        os.write(keyboard[0], b"a")
        assert terminal.key(5.0) == "a"


def test_what_is_written_arrives_whole(keyboard: tuple[int, int]) -> None:
    text = "é" * 10_000
    thread = threading.Thread(target=terminal_module.writer(keyboard[1]), args=[text])
    thread.start()
    seen = b""
    while len(seen) < len(text.encode()):
        seen += os.read(keyboard[0], 1024)
    thread.join()
    assert seen.decode() == text


def test_an_arrow_is_no_letter(keyboard: tuple[int, int]) -> None:
    with Terminal(lambda text: None, keyboard[1]) as terminal:
        os.write(keyboard[0], b"\x1b[A")
        assert terminal.key(5.0) == "escape"
        assert terminal.key(0.0) == ""


def test_a_terminal_that_is_gone_has_no_more_keys(keyboard: tuple[int, int]) -> None:
    with Terminal(lambda text: None, keyboard[1]) as terminal:
        os.close(keyboard[0])
        assert terminal.key(5.0) == ""
        started = time.monotonic()
        assert terminal.key(0.2) == ""
        assert time.monotonic() - started > 0.05


def test_an_error_at_the_beginning_restores_the_terminal_too(keyboard: tuple[int, int]) -> None:
    before = termios.tcgetattr(keyboard[1])
    handler = signal.getsignal(signal.SIGTERM)
    written: list[str] = []

    def write(text: str) -> None:
        written.append(text)
        if len(written) == 1:
            raise BrokenPipeError

    terminal = Terminal(write, keyboard[1])
    with pytest.raises(BrokenPipeError), terminal:
        pass
    assert termios.tcgetattr(keyboard[1]) == before
    assert signal.getsignal(signal.SIGTERM) is handler


def test_a_second_signal_does_not_keep_the_terminal_from_being_restored(
    keyboard: tuple[int, int],
) -> None:
    before = termios.tcgetattr(keyboard[1])

    def write(text: str) -> None:
        if "\x1b[?1049l" in text:
            os.kill(os.getpid(), signal.SIGTERM)

    def wait() -> None:
        with Terminal(write, keyboard[1]):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10.0)

    with pytest.raises(Ended) as ended:
        wait()
    assert ended.value.number == signal.SIGTERM
    assert termios.tcgetattr(keyboard[1]) == before


@pytest.mark.parametrize("stdin", [None, "closed", "no terminal", "a terminal", "no termios"])
def test_the_keyboard_is_standard_input_if_that_is_a_terminal(
    keyboard: tuple[int, int], monkeypatch: pytest.MonkeyPatch, stdin: str | None
) -> None:
    with (
        open(os.devnull, encoding="ascii") as null,
        open(keyboard[1], encoding="ascii", closefd=False) as tty,
    ):
        files: dict[str | None, Any] = {
            "no terminal": null,
            "a terminal": tty,
            "no termios": tty,
            "closed": null,
            None: None,
        }
        if stdin == "closed":
            null.close()
        if stdin == "no termios":
            monkeypatch.delattr(terminal_module, "termios")
        monkeypatch.setattr(sys, "stdin", files[stdin])
        found = terminal_module._keyboard()
    assert found == (keyboard[1] if stdin == "a terminal" else None)
