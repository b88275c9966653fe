"""Requests: their body, what middleware has made of them, and the environment they came with."""

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
    """A request, with all attributes that it has, and the body still to be read.

    Lists, dictionaries and sets among them are kept as deep as they go; the user, session and
    messages by what they are. Of the server's own dictionaries, ``META`` and ASGI's
    ``scope``, only the entries are.
    """

    __slots__ = ("_body", "request")

    def __init__(self, value: HttpRequest, snapshot: Snapshot, depth: int) -> None:
        self.request = value
        # First, because it may exchange the stream.
        self._body = Body(value)
        if self._body.to_come:
            snapshot.bodies.append(self._body)
        # Before the rest, so that nobody goes through what they hold.
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
