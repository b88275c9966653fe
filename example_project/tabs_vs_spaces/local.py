"""The folder that keeps what the example needs from run to run, and who is using it now."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import time
from pathlib import Path
from typing import TYPE_CHECKING

from django_pooled.stats.trusted_folder import make_folder

if TYPE_CHECKING:
    from collections.abc import Iterator

PROJECT = Path(__file__).resolve().parent.parent

FOLDER = Path(os.environ.get("EXAMPLE_FOLDER") or PROJECT / ".postgres").absolute()
"""Holds the embedded server's data, its address while it runs, and the secret key."""

_URL = FOLDER / "url"
_KEY = FOLDER / "secret_key"
_LOCK = FOLDER / "lock"


class FolderUnusable(Exception):
    """The folder belongs to somebody else, for now or for good; the message says who."""


def secret_key() -> str:
    """Return the key that an earlier ``serve`` kept here, or else a new one."""
    with contextlib.suppress(OSError):
        _refuse_unless_trusted()
        return _KEY.read_text()
    return secrets.token_urlsafe(50)


def database_url() -> str | None:
    """Return the address of the running embedded server, or None where we find none."""
    with contextlib.suppress(OSError):
        _refuse_unless_trusted()
        with _LOCK.open() as lock:
            # The address that a killed serve left behind is nobody's: its lock went with it.
            if not _try_lock(lock.fileno(), fcntl.LOCK_SH):
                return _URL.read_text()
    return None


@contextlib.contextmanager
def held(key: str) -> Iterator[None]:
    """Hold the folder, made when missing, as the one ``serve`` that runs its server.

    Args:
        key: The secret key to keep, if it has none yet.

    Raises:
        FolderUnusable: Another ``serve`` holds it, or we may not write there.
    """
    try:
        lock = _prepare()
    except OSError as error:
        raise FolderUnusable(f"{FOLDER} can't be used: {error.strerror}.") from error
    with open(lock, "rb"):
        _take(lock)
        _URL.unlink(missing_ok=True)
        if not _KEY.exists():
            _write_private(_KEY, key)
        try:
            yield
        finally:
            _URL.unlink(missing_ok=True)


def announce(url: str) -> None:
    """Let :func:`database_url` of other processes find the server; call it while held."""
    _write_private(_URL, url)


def _prepare() -> int:
    # Root's server runs as another user, who passes through; each file in here says for
    # itself who may read it.
    mode = 0o711 if os.geteuid() == 0 else 0o700
    make_folder(FOLDER, _trusted(), mode)
    FOLDER.chmod(mode)
    (FOLDER / ".gitignore").write_text("*\n")
    return os.open(_LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)


def _refuse_unless_trusted() -> None:
    """Raise OSError if the folder is missing, or somebody else could have put a file there."""
    make_folder(FOLDER, _trusted(), 0, missing=False)


def _trusted() -> set[int]:
    return {0, os.geteuid(), PROJECT.stat().st_uid}


def _take(lock: int) -> None:
    # Readers hold the lock for an instant, in which it is not really taken.
    for _ in range(20):
        if _try_lock(lock, fcntl.LOCK_EX):
            return
        time.sleep(0.05)
    raise FolderUnusable(f"Another serve is running on {FOLDER}.")


def _try_lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _write_private(path: Path, text: str) -> None:
    draft = path.with_name(f"{path.name}.new")
    draft.unlink(missing_ok=True)
    with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    draft.replace(path)
