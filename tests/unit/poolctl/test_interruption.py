"""Signals that end `manage.py poolctl`."""

from __future__ import annotations

import signal
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from django_pooled.poolctl.interruption import interrupted_once

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGHUP")


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Those of the test run are put back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGHUP, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)]
)
def test_the_first_signal_raises_and_later_ones_do_nothing(
    number: int, error: type[BaseException]
) -> None:
    def work() -> None:
        try:
            signal.raise_signal(number)
        finally:
            for later in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.raise_signal(later)
            undone.append(1)

    undone: list[int] = []
    with pytest.raises(error), interrupted_once():
        work()
    assert undone


def test_the_exit_code_names_the_signal() -> None:
    with pytest.raises(SystemExit) as caught, interrupted_once():
        signal.raise_signal(signal.SIGHUP)
    assert caught.value.code == 128 + signal.SIGHUP


def test_what_is_ignored_stays_so_and_handlers_are_put_back() -> None:
    def handler(*_: object) -> None:
        raise AssertionError

    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, handler)
    with interrupted_once():
        signal.raise_signal(signal.SIGHUP)
        assert signal.getsignal(signal.SIGTERM) is not handler
    assert signal.getsignal(signal.SIGTERM) is handler


def test_a_thread_goes_on_without() -> None:
    done = []

    def work() -> None:
        with interrupted_once():
            done.append(1)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done
