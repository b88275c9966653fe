from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import pytest

from django_pooled.stats import socket_folder
from django_pooled.stats.trusted_folder import NotTrusted, make_folder, refuse_planted_links

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such owners")
as_root = pytest.mark.skipif(
    sys.platform == "win32" or os.geteuid() != 0, reason="only root can give files away"
)
STRANGER = 4711
TRUSTED = {0, os.geteuid()} if sys.platform != "win32" else {0}


def test_what_is_missing_is_made_with_its_mode_whatever_the_mask(public_folder: Path) -> None:
    before = os.umask(0o077)
    try:
        make_folder(public_folder / "one" / "two", TRUSTED, 0o711)
    finally:
        os.umask(before)
    assert [
        path.stat().st_mode & 0o777
        for path in (public_folder / "one", public_folder / "one" / "two")
    ] == [
        0o711,
        0o711,
    ]
    make_folder(public_folder / "one" / "two", TRUSTED, 0o711)


def test_what_is_missing_may_be_left_missing(public_folder: Path) -> None:
    with pytest.raises(FileNotFoundError):
        make_folder(public_folder / "one", TRUSTED, 0, missing=False)
    assert list(public_folder.iterdir()) == []


def test_links_of_the_trusted_are_followed(public_folder: Path) -> None:
    (public_folder / "real" / "deep").mkdir(parents=True, mode=0o700)
    (public_folder / "absolute").symlink_to(public_folder / "real")
    (public_folder / "relative").symlink_to("real/deep/../deep")
    make_folder(public_folder / "absolute" / "deep" / "new", TRUSTED, 0o700)
    make_folder(public_folder / "relative" / "newer", TRUSTED, 0o700)
    assert {path.name for path in (public_folder / "real" / "deep").iterdir()} == {"new", "newer"}


def test_links_in_a_circle_come_to_an_end(public_folder: Path) -> None:
    (public_folder / "one").symlink_to("two")
    (public_folder / "two").symlink_to("one")
    with pytest.raises(OSError, match="symbolic links"):
        make_folder(public_folder / "one" / "x", TRUSTED, 0o700)


def test_a_file_in_the_way_is_an_error(public_folder: Path) -> None:
    (public_folder / "file").touch()
    with pytest.raises(NotADirectoryError):
        make_folder(public_folder / "file" / "x", TRUSTED, 0o700)


@as_root
def test_a_stranger_s_folder_and_link_are_refused_by_name(public_folder: Path) -> None:
    (public_folder / "his").mkdir()
    os.chown(public_folder / "his", STRANGER, STRANGER)
    (public_folder / "link").symlink_to("/etc")
    os.lchown(public_folder / "link", STRANGER, STRANGER)
    with pytest.raises(NotTrusted, match=f"/his belongs to user {STRANGER}, not to user 0"):
        make_folder(public_folder / "his" / "new", TRUSTED, 0o700)
    with pytest.raises(NotTrusted, match=f"/link is a symbolic link of user {STRANGER}"):
        make_folder(public_folder / "link" / "new", TRUSTED, 0o700)
    make_folder(public_folder / "his" / "new", {0, STRANGER}, 0o700)


@pytest.mark.parametrize("mode", [0o777, 0o757, 0o775])
def test_a_folder_that_others_can_write_is_refused_unless_it_is_sticky(
    public_folder: Path, mode: int
) -> None:
    (public_folder / "open").mkdir()
    if mode == 0o775:
        if os.geteuid() != 0:
            pytest.skip("only root can choose any group")
        os.chown(public_folder / "open", 0, STRANGER)
    (public_folder / "open").chmod(mode)
    with pytest.raises(NotTrusted, match=f"/open can be written by other users .mode {mode:04o}"):
        make_folder(public_folder / "open" / "new", TRUSTED, 0o700)
    (public_folder / "open").chmod(0o1000 | mode)
    make_folder(public_folder / "open" / "new", TRUSTED, 0o700)


def test_a_group_of_the_user_s_own_is_nobody_else(public_folder: Path) -> None:
    (public_folder / "mine").mkdir()
    (public_folder / "mine").chmod(0o775)
    make_folder(public_folder / "mine" / "new", TRUSTED, 0o700)


@as_root
def test_planted_links_alone_are_refused_where_folders_are_shared(public_folder: Path) -> None:
    (public_folder / "his").mkdir(mode=0o777)
    os.chown(public_folder / "his", STRANGER, STRANGER)
    (public_folder / "his" / "link").symlink_to(public_folder)
    os.lchown(public_folder / "his" / "link", STRANGER, STRANGER)
    refuse_planted_links(public_folder / "his" / "missing" / "x", TRUSTED)
    with pytest.raises(NotTrusted, match="is a symbolic link"):
        refuse_planted_links(public_folder / "his" / "link" / "x", TRUSTED)


@as_root
def test_no_folder_of_sockets_is_made_through_a_stranger_s_link(public_folder: Path) -> None:
    target = public_folder / "target"
    target.mkdir(mode=0o700)
    (public_folder / "stats").symlink_to(target)
    os.lchown(public_folder / "stats", STRANGER, STRANGER)
    with pytest.raises(NotTrusted, match="is a symbolic link of user"):
        socket_folder.prepare(public_folder / "stats" / "django_pooled-0")
    assert list(target.iterdir()) == []
