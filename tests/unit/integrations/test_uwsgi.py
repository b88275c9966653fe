"""What uWSGI is told where the versions and setups for it are not to be had; see test_uwsgi.py."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from django_pooled.integrations.uwsgi import call_after_fork, warn_without_threads

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def uwsgi(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Stand in for the module that uWSGI has inside its workers, without uwsgidecorators."""
    module = SimpleNamespace()
    monkeypatch.setitem(sys.modules, "uwsgi", module)
    monkeypatch.setitem(sys.modules, "uwsgidecorators", None)
    return module


def test_without_a_master_process_hooks_are_called_in_their_order(uwsgi: SimpleNamespace) -> None:
    called: list[str] = []
    hooks: list[Callable[[], object]] = [lambda: called.append("one"), lambda: called.append("two")]
    for hook in hooks:
        call_after_fork(hook)
    uwsgi.post_fork_hook()
    assert called == ["one", "two"]


def test_a_hook_of_the_project_s_own_is_called_first(uwsgi: SimpleNamespace) -> None:
    called: list[str] = []
    uwsgi.post_fork_hook = lambda: called.append("the project's")
    call_after_fork(lambda: called.append("ours"))
    uwsgi.post_fork_hook()
    assert called == ["the project's", "ours"]


@pytest.mark.parametrize(("has_threads", "lines"), [(False, 1), (True, 0)])
def test_threads_that_sleep_between_requests_are_told_of(
    uwsgi: SimpleNamespace, caplog: pytest.LogCaptureFixture, has_threads: bool, lines: int
) -> None:
    uwsgi.has_threads = has_threads
    warn_without_threads()
    assert caplog.text.count("Set enable-threads = true") == lines
