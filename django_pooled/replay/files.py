"""Django's files, such as uploads: their position, and their content if they are in memory."""

from __future__ import annotations

import io
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .object_state import KeptAttributes, keeps
from .refusal import CannotReplay

if TYPE_CHECKING:
    from .object_state import Snapshot

__all__ = ["KeptFile", "rewind"]


@keeps("django.core.files.base.File")
class KeptFile(KeptAttributes):
    """An open file and its position; if it is in memory, also its content."""

    __slots__ = ("_content", "_position")

    def __init__(self, value: Any, snapshot: Snapshot, depth: int) -> None:
        super().__init__(value, snapshot, 0)
        self._content: Any = None
        self._position: int | None = None
        file = self.attributes.get("file")
        if file is not None and not getattr(file, "closed", True):
            self._position = file.tell()
            if isinstance(file, io.BytesIO | io.StringIO):
                self._content = file.getvalue()

    def restore(self) -> None:
        super().restore()
        if self._position is not None:
            rewind(self.value, self._position, self._content)


def rewind(file: Any, position: int, content: Any = None) -> None:
    """Return to a position in Django's *file*.

    If it was closed, a file in memory is made anew from its *content*. If a storage has moved it
    away, as it does with uploads, a file on disk is copied back.

    Raises:
        CannotReplay: It was closed, and has no *content*.
    """
    if file.file.closed:
        if content is None:
            # Without its name, which comes from a user.
            raise CannotReplay("a file was closed and cannot be read again")
        file.file = type(file.file)(content)
    if hasattr(file, "temporary_file_path"):
        path = Path(file.temporary_file_path())
        if not path.exists():
            file.file.seek(0)
            # As private as the first one was.
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as copy:
                shutil.copyfileobj(file.file, copy)
    file.file.seek(position)
