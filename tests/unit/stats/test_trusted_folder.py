from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from django_pooled.stats import socket_folder
from django_pooled.stats.trusted_folder import NotTrusted, make_folder, refuse_planted_links

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such owners")
as_root = pytest.mark.skipif(
    sys.platform == "win32" or os.geteuid() != 0, reason="only root can give files away"
)
STRANGER = 4711
TRUSTED = {0, os.geteuid()} if sys.platform != "win32" else {0}


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder in which everybody may make things, as in /tmp."""
    path = Path(tempfile.mkdtemp(prefix="shared-", dir="/tmp"))
    path.chmod(0o1777)
    yield path
    shutil.rmtree(path)


def test_what_is_missing_is_made_with_its_mode_whatever_the_mask(shared: Path) -> None:
    before = os.umask(0o077)
    try:
        make_folder(shared / "one" / "two", TRUSTED, 0o711)
    finally:
        os.umask(before)
    assert [path.stat().st_mode & 0o777 for path in (shared / "one", shared / "one" / "two")] == [
        0o711,
        0o711,
    ]
    make_folder(shared / "one" / "two", TRUSTED, 0o711)


def test_what_is_missing_may_be_left_missing(shared: Path) -> None:
    with pytest.raises(FileNotFoundError):
        make_folder(shared / "one", TRUSTED, 0, missing=False)
    assert list(shared.iterdir()) == []


def test_links_of_the_trusted_are_followed(shared: Path) -> None:
    (shared / "real" / "deep").mkdir(parents=True, mode=0o700)
    (shared / "absolute").symlink_to(shared / "real")
    (shared / "relative").symlink_to("real/deep/../deep")
    make_folder(shared / "absolute" / "deep" / "new", TRUSTED, 0o700)
    make_folder(shared / "relative" / "newer", TRUSTED, 0o700)
    assert {path.name for path in (shared / "real" / "deep").iterdir()} == {"new", "newer"}


def test_links_in_a_circle_come_to_an_end(shared: Path) -> None:
    (shared / "one").symlink_to("two")
    (shared / "two").symlink_to("one")
    with pytest.raises(OSError, match="symbolic links"):
        make_folder(shared / "one" / "x", TRUSTED, 0o700)


def test_a_file_in_the_way_is_an_error(shared: Path) -> None:
    (shared / "file").touch()
    with pytest.raises(NotADirectoryError):
        make_folder(shared / "file" / "x", TRUSTED, 0o700)


@as_root
def test_a_stranger_s_folder_and_link_are_refused_by_name(shared: Path) -> None:
    (shared / "his").mkdir()
    os.chown(shared / "his", STRANGER, STRANGER)
    (shared / "link").symlink_to("/etc")
    os.lchown(shared / "link", STRANGER, STRANGER)
    with pytest.raises(NotTrusted, match=f"/his belongs to user {STRANGER}, not to user 0"):
        make_folder(shared / "his" / "new", TRUSTED, 0o700)
    with pytest.raises(NotTrusted, match=f"/link is a symbolic link of user {STRANGER}"):
        make_folder(shared / "link" / "new", TRUSTED, 0o700)
    make_folder(shared / "his" / "new", {0, STRANGER}, 0o700)


@pytest.mark.parametrize("mode", [0o777, 0o757, 0o775])
def test_a_folder_that_others_can_write_is_refused_unless_it_is_sticky(
    shared: Path, mode: int
) -> None:
    (shared / "open").mkdir()
    if mode == 0o775:
        if os.geteuid() != 0:
            pytest.skip("only root can choose any group")
        os.chown(shared / "open", 0, STRANGER)
    (shared / "open").chmod(mode)
    with pytest.raises(NotTrusted, match=f"/open can be written by other users .mode {mode:04o}"):
        make_folder(shared / "open" / "new", TRUSTED, 0o700)
    (shared / "open").chmod(0o1000 | mode)
    make_folder(shared / "open" / "new", TRUSTED, 0o700)


def test_a_group_of_the_user_s_own_is_nobody_else(shared: Path) -> None:
    (shared / "mine").mkdir()
    (shared / "mine").chmod(0o775)
    make_folder(shared / "mine" / "new", TRUSTED, 0o700)


@as_root
def test_planted_links_alone_are_refused_where_folders_are_shared(shared: Path) -> None:
    (shared / "his").mkdir(mode=0o777)
    os.chown(shared / "his", STRANGER, STRANGER)
    (shared / "his" / "link").symlink_to(shared)
    os.lchown(shared / "his" / "link", STRANGER, STRANGER)
    refuse_planted_links(shared / "his" / "missing" / "x", TRUSTED)
    with pytest.raises(NotTrusted, match="is a symbolic link"):
        refuse_planted_links(shared / "his" / "link" / "x", TRUSTED)


@as_root
def test_no_folder_of_sockets_is_made_through_a_stranger_s_link(shared: Path) -> None:
    target = shared / "target"
    target.mkdir(mode=0o700)
    (shared / "stats").symlink_to(target)
    os.lchown(shared / "stats", STRANGER, STRANGER)
    with pytest.raises(NotTrusted, match="is a symbolic link of user"):
        socket_folder.prepare(shared / "stats" / "django_pooled-0")
    assert list(target.iterdir()) == []
