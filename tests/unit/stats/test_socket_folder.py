"""What may happen in the folder of the sockets between one look and the next."""

from __future__ import annotations

import logging
import os
import socket
import sys
from typing import TYPE_CHECKING

import pytest

from django_pooled.stats import answering_socket, socket_folder
from django_pooled.stats.socket_folder import Entry, FolderRefused

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no Unix sockets")


@pytest.fixture
def descriptor(stats_dir: Path) -> Iterator[int]:
    found = socket_folder.open_folder(stats_dir, os.geteuid())
    yield found
    os.close(found)


@pytest.fixture
def listener(stats_dir: Path) -> Iterator[socket.socket]:
    """A socket that nobody accepts connections of, by a name as a process of this project's has."""
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(stats_dir / socket_folder.socket_name(os.getpid())))
        made.listen(0)
        yield made


def test_a_folder_that_is_opened_to_others_after_the_first_look_is_refused(
    stats_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def looked_at_too_early(path: Path) -> os.stat_result:
        found = os.stat(path)
        path.chmod(0o777)
        return found

    before = os.listdir("/proc/self/fd") if sys.platform == "linux" else []
    with monkeypatch.context() as patch:
        patch.setattr(os, "lstat", looked_at_too_early)
        with pytest.raises(FolderRefused):
            socket_folder.open_folder(stats_dir, os.geteuid())
    if before:
        assert os.listdir("/proc/self/fd") == before


def test_a_socket_that_goes_while_the_folder_is_read_is_passed_over(
    stats_dir: Path, descriptor: int, listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone, listdir = socket_folder.socket_name(1), os.listdir

    def read_a_moment_ago(folder: int) -> list[str]:
        return [gone, *listdir(folder)]

    monkeypatch.setattr(os, "listdir", read_a_moment_ago)
    assert [entry.pid for entry in socket_folder.entries(descriptor)] == [os.getpid()]


def test_a_socket_that_somebody_else_has_removed_counts_as_removed(
    stats_dir: Path, descriptor: int
) -> None:
    entry = Entry(socket_folder.socket_name(1), 1, listens=True)
    assert socket_folder.remove_abandoned(stats_dir, descriptor, entry)


def test_a_process_with_more_readers_than_it_can_answer_keeps_its_socket(
    stats_dir: Path, descriptor: int, listener: socket.socket
) -> None:
    [entry] = socket_folder.entries(descriptor)
    readers: list[socket.socket] = []
    try:
        while not readers or readers[-1].connect_ex(listener.getsockname()) == 0:
            readers.append(socket.socket(socket.AF_UNIX))
            readers[-1].setblocking(False)
        assert not socket_folder.remove_abandoned(stats_dir, descriptor, entry)
    finally:
        for reader in readers:
            reader.close()
    assert (stats_dir / entry.name).exists()


def test_a_number_that_no_process_can_have_is_not_taken_for_a_dead_one() -> None:
    assert socket_folder.process_exists(9_999_999_999)


def test_nothing_is_said_of_the_peer_where_the_platform_does_not_tell(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one, other = socket.socketpair()
    with one, other:
        monkeypatch.setattr(sys, "platform", "freebsd14")
        assert socket_folder.peer_of(one) is None


def test_a_folder_that_is_gone_is_left_unswept_with_a_word_of_why(
    stats_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    answering_socket._sweep(stats_dir / "gone")
    [record] = [found for found in caplog.records if "cannot remove sockets" in found.getMessage()]
    assert "No such file" in record.getMessage()
