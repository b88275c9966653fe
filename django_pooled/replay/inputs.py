"""The inputs of a call: kept before its first attempt, put back before each further one."""

from __future__ import annotations

from typing import TYPE_CHECKING

# For what they register.
from . import containers, files, kinds, requests, sessions, streams  # noqa: F401
from .activation import Activation
from .clients import client_has_gone
from .closures import Surroundings
from .model_instances import Saves, current, listen
from .object_state import Memory
from .refusal import CannotReplay

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from contextvars import Token

    from django.http import HttpRequest

__all__ = ["Inputs"]


class Inputs:
    """What a call works with, as it is before the first attempt.

    Put back in place are requests (see `requests.KeptRequest`), class-based views, forms,
    serializers, payloads and management commands by their attributes; model instances by
    fields and state; querysets without results that they did not have; files at their
    position; lists, dictionaries and sets. An iterator that an attempt has begun to use up cannot
    be put back, and ends it. They are found among the arguments and in what these
    hold, in the object that a method is bound to, and in variables around the function. An
    instance reached in another way gets back the state that it had before the attempt first
    saved it. The language and time zone that were active are active again.

    What other threads change of a list or dictionary meanwhile is lost with it. Other objects are
    left as an attempt leaves them. So a function must not change its own
    globals, objects of classes of your own, or lists around it; the latter are told in the log.

    Args:
        function: What is called.
        args: Positional arguments.
        kwargs: Keyword arguments.
    """

    __slots__ = ("_activation", "_attempt", "_memory", "_surroundings")

    def __init__(
        self,
        function: Callable[..., object],
        args: Sequence[object],
        kwargs: Mapping[str, object],
    ) -> None:
        self._memory = memory = Memory()
        self._attempt: _Recording | None = None
        if args:
            memory.keep_all(args)
        if kwargs:
            memory.keep_all(kwargs.values())
        self._surroundings = Surroundings(function, memory)
        self._activation = Activation()

    @property
    def requests(self) -> list[HttpRequest]:
        """The requests among the inputs."""
        return self._memory.requests

    @property
    def are_to_come(self) -> bool:
        """Whether a client may still be sending a part of them."""
        return bool(self._memory.bodies)

    def await_bodies(self) -> None:
        """Wait for what clients still send."""
        while self._memory.bodies:
            self._memory.bodies.pop().read_ahead()

    def recording(self) -> _Recording:
        """Return the context of one attempt, in which what it does to other objects is noted."""
        self._attempt = _Recording(self._memory)
        return self._attempt

    def obstacle_after_restoring(self) -> str | None:
        """Put everything back; return the reason if there must be no other attempt all the same."""
        if any(client_has_gone(request) for request in self.requests):
            return "the client has closed its connection"
        try:
            self.restore()
        except CannotReplay as refusal:
            return refusal.reason
        return None

    def restore(self) -> None:
        """Put everything back to what it was before the first attempt.

        Raises:
            CannotReplay: That is not possible, so that there must be no other attempt.
        """
        self._surroundings.tell_changes()
        if self._attempt is not None:
            self._attempt.saves.restore()
        self._activation.restore()
        self._memory.restore()


class _Recording:
    __slots__ = ("_hooks", "_token", "saves")

    def __init__(self, memory: Memory) -> None:
        self._hooks = memory.hooks
        self._token: Token[Saves | None]
        self.saves = Saves(memory, current.get())

    def __enter__(self) -> None:
        self._token = current.set(self.saves)
        for hook in self._hooks:
            hook.start()

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.stop()
        current.reset(self._token)


listen()
