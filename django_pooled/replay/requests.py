"""Requests: their attributes, and their body, which each attempt reads again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .bodies import Body
from .object_state import KeptAttributes, keeps

if TYPE_CHECKING:
    from django.http import HttpRequest

    from .object_state import Snapshot

__all__ = ["KeptRequest"]


@keeps("django.http.request.HttpRequest")
class KeptRequest(KeptAttributes):
    """A request: all its attributes, and the body that is still to be read.

    Lists, dictionaries and sets among the attributes are kept with what they hold; the user,
    session and messages are kept by their classes. Of the server's own dictionaries, ``META`` and
    ASGI's ``scope``, only the entries are kept.
    """

    __slots__ = ("_body", "request")

    def __init__(self, value: HttpRequest, snapshot: Snapshot, depth: int) -> None:
        self.request = value
        # First, because it may replace the stream.
        self._body = Body(value)
        if self._body.to_come:
            snapshot.bodies.append(self._body)
        # Before the rest, so that their values are not followed.
        snapshot.keep(value.META, 0)
        snapshot.keep(getattr(value, "scope", None), 0)
        snapshot.requests.append(value)
        super().__init__(value, snapshot, depth)

    def restore(self) -> None:
        then = self.attributes.copy()
        self._body.rewind(then)
        now = vars(self.request)
        now.clear()
        now.update(then)
