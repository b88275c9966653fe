"""The inputs of a call: kept before its first attempt, restored before each further one."""

from __future__ import annotations

from contextvars import copy_context
from typing import TYPE_CHECKING, TypeVar

# They register how objects are kept.
from . import containers, files, requests, restored_classes, sessions, streams  # noqa: F401
from .clients import client_has_gone
from .closures import log_changes
from .context_variables import keep_container, restore_context
from .model_instances import Saves, current, listen
from .object_state import CONTAINERS, KINDS, Snapshot
from .refusal import CannotReplay

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from django.db.models import Model

    from .closures import ClosedOver, Surroundings

__all__ = ["Inputs"]

R = TypeVar("R")


class Inputs:
    """The objects that a call works with, and their state before its first attempt.

    Restored in place are requests (see `requests.KeptRequest`), class-based views, forms,
    serializers, payloads and management commands by their attributes; model instances by
    fields and state; querysets without results that they did not have; files at their
    position; lists, dictionaries and sets. An iterator that an attempt has advanced
    cannot be restored, and ends the attempts. All of them are found among the arguments and in
    objects that these hold, in the object that a method is bound to, and in variables around the
    function. A model instance that is found in another way gets back the state before its first
    save. Context variables have the value that they had, and containers in them what they held; the
    active language and time zone are activated again.

    Changes of a list or dictionary by other threads are lost. Other objects are left as an attempt
    leaves them: a function must not change its globals, objects of the project's own classes, or
    lists around it; the last are named in the log.

    Args:
        surroundings: Of what is called.
        args: Positional arguments.
        kwargs: Keyword arguments.
    """

    __slots__ = ("_context", "_outer", "_saves", "_snapshot", "_watched", "are_to_come")

    def __init__(
        self, surroundings: Surroundings, args: Sequence[object], kwargs: Mapping[str, object]
    ) -> None:
        self._context = copy_context()
        """With the language and the time zone that are active."""
        self._outer = current.get()
        """Of the attempt around this call, on another database."""
        self._saves: Saves | None = None
        self._watched: list[ClosedOver] = []
        found = [*args, *kwargs.values(), *surroundings.objects]
        if surroundings.variables:
            self._watched = surroundings.look(found)
        self.are_to_come = False
        """Whether a client may still be sending a request's body."""
        self._snapshot: Snapshot | None = None
        for value in found:
            if KINDS[type(value)] is not None:
                self._snapshot = Snapshot()
                self._snapshot.keep_all(found)
                self.are_to_come = bool(self._snapshot.bodies)
                break
        for value in self._context.values():
            # Such as a queue that a middleware sends later: functions in between add to it, and
            # know it by the variable alone.
            if type(value) in CONTAINERS:
                self._snapshot = self._snapshot or Snapshot()
                keep_container(value, self._snapshot)

    def await_bodies(self) -> None:
        """Wait for the bodies that clients still send."""
        while self._snapshot is not None and self._snapshot.bodies:
            self._snapshot.bodies.pop().read_ahead()

    def run(self, attempt: Callable[[], R]) -> R:
        """Run one attempt, and take note of what it does to objects that are no inputs."""
        hooks = self._snapshot.hooks if self._snapshot is not None else ()
        token = current.set(self)
        try:
            for hook in hooks:
                hook.start()
            return attempt()
        finally:
            for hook in hooks:
                hook.stop()
            current.reset(token)

    def note_save(self, instance: Model) -> None:
        """*instance* is about to be saved, by this attempt or by one within it."""
        if self._outer is not None:
            self._outer.note_save(instance)
        if self._saves is None:
            self._saves = Saves(self._snapshot)
        self._saves.note(instance)

    def obstacle_after_restoring(self) -> str | None:
        """Restore everything; return the reason if there must be no other attempt."""
        if self._snapshot is not None and any(map(client_has_gone, self._snapshot.requests)):
            return "the client has closed its connection"
        try:
            self.restore()
        except CannotReplay as refusal:
            return refusal.reason
        return None

    def restore(self) -> None:
        """Restore everything to its state before the first attempt.

        Raises:
            CannotReplay: That is not possible, so that there must be no other attempt.
        """
        if self._watched:
            log_changes(self._watched)
        if self._saves is not None:
            self._saves.restore()
        restore_context(self._context)
        if self._snapshot is not None:
            self._snapshot.restore()


listen()
