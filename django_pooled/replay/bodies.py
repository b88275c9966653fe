"""The body of a request, which each attempt reads again."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.conf.global_settings import DATA_UPLOAD_MAX_MEMORY_SIZE

from .django_private import BODY, FILES, POST, READ_STARTED, STREAM
from .files import rewind
from .refusal import CannotReplay

if TYPE_CHECKING:
    from django.http import HttpRequest

__all__ = ["Body", "RecordedStream"]


class RecordedStream(io.IOBase):
    """A stream that cannot be rewound, with a record of what was read from it.

    Args:
        source: The stream.
        limit: Most bytes that are recorded; if more are read, none are.
    """

    def __init__(self, source: Any, limit: int) -> None:
        self._source = source
        self._limit = limit
        self._recorded: list[bytes] | None = []
        self._read = 0
        self._replayed: io.BytesIO | None = None
        self._error: Exception | None = None
        self.position = 0

    def readable(self) -> bool:
        return True

    def read(self, size: int | None = -1, /) -> bytes:
        """Read what was recorded, from the position on, and then from the source."""
        return self._next("read", -1 if size is None else size)

    def readline(self, size: int | None = -1, /) -> bytes:
        return self._next("readline", -1 if size is None else size)

    def close(self) -> None:
        """Do nothing: Django closes a stream at its end, and another attempt reads it again."""

    def read_ahead(self, size: int) -> None:
        """Wait for the next *size* bytes; an error is raised later, by the read that meets it."""
        ahead: list[bytes] = []
        try:
            while size > 0 and (data := self._source.read(size)):
                ahead.append(data)
                size -= len(data)
        except Exception as error:
            self._error = error
        self._recorded = [b"".join(ahead)]
        self._replayed = io.BytesIO(self._recorded[0])
        self._read = len(self._recorded[0])

    def rewind(self, position: int) -> bool:
        """Return to a *position*; tell whether that is possible."""
        if position == self.position:
            return True
        if self._recorded is None:
            return False
        self._recorded = [b"".join(self._recorded)]
        self._replayed = io.BytesIO(self._recorded[0])
        self._replayed.seek(position)
        self.position = position
        return True

    def _next(self, method: str, size: int) -> bytes:
        data = b""
        if self._replayed is not None:
            data = bytes(getattr(self._replayed, method)(size))
            self.position += len(data)
            if len(data) == size or (method == "readline" and data.endswith(b"\n")):
                return data
            self._replayed = None
            if size > 0:
                size -= len(data)
        if self._error is not None:
            if data:
                # The next read raises, as from a socket that is lost meanwhile.
                return data
            raise self._error
        more: bytes = getattr(self._source, method)(size)
        self.position += len(more)
        self._read += len(more)
        if self._read > self._limit:
            self._recorded = None
        if self._recorded is not None:
            self._recorded.append(more)
        return data + more if data else more


class Body:
    """How far a request's body was read.

    Under WSGI the request gets a stream that records what is read from now on; under ASGI Django
    has put the body into a file.
    """

    __slots__ = ("_position", "_request", "to_come")

    def __init__(self, request: HttpRequest) -> None:
        self._request = request
        self._position: int | None = None
        self.to_come = 0
        """Bytes that the client may still be sending, if they are few enough to be recorded."""
        attributes = vars(request)
        stream = attributes.get(STREAM)
        if stream is None or getattr(stream, "closed", False):
            return
        if isinstance(stream, RecordedStream):
            self._position = stream.position
        elif not isinstance(stream, io.IOBase) or stream.seekable():
            self._position = stream.tell()
        elif FILES not in attributes and request.META.get("CONTENT_LENGTH") not in _NO_BODY:
            attributes[STREAM] = RecordedStream(stream, _limit())
            self._position = 0
            length = _length(request)
            if length <= _limit() and not attributes.get(READ_STARTED):
                self.to_come = length

    def read_ahead(self) -> None:
        """Wait for the client to send it, up to the limit of what a view may read."""
        to_come, self.to_come = self.to_come, 0
        stream = vars(self._request).get(STREAM)
        if to_come and isinstance(stream, RecordedStream):
            stream.read_ahead(to_come)

    def rewind(self, then: dict[str, Any]) -> None:
        """Have it read again, by changing the attributes that the request had *then*.

        A body that an attempt has read as a whole is kept. A form that was too large to be recorded
        stays parsed.

        Raises:
            CannotReplay: More was read than is recorded.
        """
        now = vars(self._request)
        if BODY in now and BODY not in then:
            then[BODY] = now[BODY]
            then[STREAM] = io.BytesIO(now[BODY])
        elif self._position is not None and not self._seek(then[STREAM], self._position):
            if FILES not in now or FILES in then:
                raise CannotReplay(
                    f"more of the request's body was read as a stream than the {_limit()} bytes "
                    f"of DATA_UPLOAD_MAX_MEMORY_SIZE, which are kept of it"
                )
            for name in (POST, FILES, READ_STARTED):
                then[name] = now[name]
            for file in _files(now):
                rewind(file, 0)
        if now.get(FILES) is not then.get(FILES):
            for file in _files(now):
                file.close()

    @staticmethod
    def _seek(stream: Any, position: int) -> bool:
        if isinstance(stream, RecordedStream):
            return stream.rewind(position)
        try:
            stream.seek(position)
        except ValueError:
            # It is closed.
            return False
        return True


_NO_BODY = (None, "", "0")


def _limit() -> int:
    # None allows bodies of any size; what is recorded of one must have a limit.
    limit: int | None = settings.DATA_UPLOAD_MAX_MEMORY_SIZE
    return DATA_UPLOAD_MAX_MEMORY_SIZE if limit is None else limit


def _length(request: HttpRequest) -> int:
    try:
        return int(request.META["CONTENT_LENGTH"])
    except (KeyError, ValueError):
        return 0


def _files(attributes: dict[str, Any]) -> list[Any]:
    uploads = attributes.get(FILES)
    return [file for _, files in uploads.lists() for file in files] if uploads else []
