"""The pause that is left for processes that start meanwhile."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING

import pytest

from django_pooled.stats import standing_pause
from django_pooled.stats.orders import Order
from django_pooled.stats.socket_folder import FolderRefused

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no Unix sockets")

SITE = "0123abcd"
PAUSE = Order("pause", SITE, {"default": "db:5432/x"}, token="t", seconds=50.0, renews=True)


def test_it_is_found_for_as_long_as_it_lasts_still(stats_dir: Path) -> None:
    assert standing_pause.find(stats_dir, SITE) is None
    standing_pause.leave(stats_dir, PAUSE, "user 33 (process 9)")
    found = standing_pause.find(stats_dir, SITE)
    assert found is not None
    order, by = found
    assert by == "user 33 (process 9)"
    assert (order.token, order.databases, order.renews) == ("t", PAUSE.databases, False)
    assert 40 < order.seconds <= 50
    assert standing_pause.find(stats_dir, "ffffffff") is None
    standing_pause.remove(stats_dir, SITE)
    standing_pause.remove(stats_dir, SITE)
    assert standing_pause.find(stats_dir, SITE) is None
    assert os.listdir(stats_dir) == []


def test_a_run_of_the_command_removes_its_own(stats_dir: Path) -> None:
    standing_pause.leave(stats_dir, PAUSE, "user 33")
    standing_pause.remove(stats_dir, SITE, "another")
    assert standing_pause.find(stats_dir, SITE) is not None
    standing_pause.remove(stats_dir, SITE, PAUSE.token)
    assert standing_pause.find(stats_dir, SITE) is None


def test_one_that_is_over_is_removed(stats_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    standing_pause.leave(stats_dir, PAUSE, "user 33")
    later = time.time() + 51
    monkeypatch.setattr(time, "time", lambda: later)
    assert standing_pause.find(stats_dir, SITE) is None
    assert os.listdir(stats_dir) == []


def test_a_clock_that_is_set_back_makes_it_no_longer(
    stats_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    standing_pause.leave(stats_dir, PAUSE, "user 33")
    before = time.time() - 10_000
    monkeypatch.setattr(time, "time", lambda: before)
    found = standing_pause.find(stats_dir, SITE)
    assert found is not None
    assert found[0].seconds == 50.0


@pytest.mark.parametrize("text", [b"", b"nonsense", b"9e999\nx\norder 2 {}\n", b"1e10\nx"])
def test_what_was_not_left_by_us_is_none(stats_dir: Path, text: bytes) -> None:
    (stats_dir / f"{SITE}.pause").write_bytes(text)
    assert standing_pause.find(stats_dir, SITE) is None


def test_nothing_is_read_through_a_link_or_in_an_open_folder(
    stats_dir: Path, tmp_path: Path
) -> None:
    standing_pause.leave(stats_dir, PAUSE, "user 33")
    (stats_dir / f"{SITE}.pause").rename(tmp_path / "elsewhere")
    (stats_dir / f"{SITE}.pause").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match=r"symbolic|links"):
        standing_pause.find(stats_dir, SITE)
    stats_dir.chmod(0o755)
    with pytest.raises(FolderRefused):
        standing_pause.find(stats_dir, SITE)


def test_a_site_is_no_path(stats_dir: Path) -> None:
    standing_pause.leave(stats_dir, Order("pause", "../up", seconds=5.0), "user 33")
    assert os.listdir(stats_dir) == []
