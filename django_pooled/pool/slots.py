"""The slots of a pool: each is taken for as long as its holder exists."""

from __future__ import annotations

from collections import Counter
from itertools import count
from typing import TYPE_CHECKING
from weakref import ref

if TYPE_CHECKING:
    from .lanes import Lane

__all__ = ["Slot", "Slots"]


class Slot:
    """The right to one of a pool's connections: of the attempt to open it, then of the connection.

    Args:
        number: Tells it from every other slot of its pool, those of earlier times included.
    """

    __slots__ = ("__weakref__", "lane", "number")

    def __init__(self, number: int) -> None:
        self.number: int = number
        self.lane: Lane | None = None
        """The lane that has the connection in use, in a pool with lanes."""


class _Entry:
    """What is known of a slot that is taken."""

    __slots__ = ("is_connected", "number", "slot")

    def __init__(self, slot: Slot) -> None:
        self.number: int = slot.number
        self.slot: ref[Slot] = ref(slot)
        self.is_connected: bool = False
        """Whether the attempt has succeeded; its connection holds the slot from then on."""


class Slots:
    """Which slots of a pool are taken.

    Counters that go up and down are wrong for good after an exception between two steps, and one
    may arrive between any two: a time limit's, Ctrl-C, any other signal handler's. So nothing is
    counted. A slot is known by a weak reference, its holder has the only strong one, and the slot
    of a holder that exists no more is free.

    The pool's lock guards what changes here, but for `restore`. Each change is one operation on one
    dictionary or entry, which no exception divides. It is read without the lock.
    """

    def __init__(self) -> None:
        self._numbers = count()
        self._taken: dict[int, _Entry] = {}

    def _held(self) -> list[_Entry]:
        # Of values, not of items: a pair for each might have the garbage collector run amid it, and
        # thereby other threads.
        return [entry for entry in list(self._taken.values()) if entry.slot() is not None]

    def __len__(self) -> int:
        return len(self._held())

    @property
    def in_place(self) -> int:
        """Slots that have a connection."""
        return sum(entry.is_connected for entry in self._held())

    def held(self) -> Counter[Lane]:
        """Count the connections that each lane has in use."""
        slots = [entry.slot() for entry in list(self._taken.values())]
        return Counter(slot.lane for slot in slots if slot is not None and slot.lane is not None)

    @property
    def opening(self) -> int:
        """Slots whose connection is being opened."""
        return sum(not entry.is_connected for entry in self._held())

    def mark(self) -> int:
        """Return a number that is higher than those of all slots until now, and of none later."""
        return next(self._numbers)

    def older(self, than: int) -> int:
        """Count the slots with a connection that were taken before a mark."""
        return sum(entry.is_connected and entry.number < than for entry in self._held())

    def take(self) -> Slot:
        """Take a slot for an attempt to open a connection."""
        slot = Slot(next(self._numbers))
        self._taken[slot.number] = _Entry(slot)
        return slot

    def connected(self, slot: Slot) -> None:
        """Note that the attempt has succeeded; its connection holds the slot from now on."""
        entry = self._taken.get(slot.number)
        if entry is not None:
            entry.is_connected = True

    def restore(self, slot: Slot) -> bool:
        """Go on knowing the slot of a holder that was found; return whether it is its own still.

        The garbage collector clears every weak reference to what it is about to free, also to what
        a finalizer then keeps. Called by finalizers, so without the lock: what comes in between
        gives the slot up, and its holder has none.
        """
        entry = self._taken.get(slot.number)
        if entry is None:
            return False
        # In this order: `give_up_lost` takes the entry out first, and looks at its slot then.
        entry.slot = ref(slot)
        return self._taken.get(slot.number) is entry

    def give_up(self, slot: Slot) -> bool:
        """Give a slot up; tell whether it was taken until now."""
        return self._taken.pop(slot.number, None) is not None

    def give_up_lost(self) -> int:
        """Give up the slots that nothing holds; return how many of them had a connection."""
        connected = 0
        for entry in list(self._taken.values()):
            if entry.slot() is not None or self._taken.pop(entry.number, None) is None:
                continue
            if entry.slot() is None:
                connected += entry.is_connected
            else:
                # A finalizer has found its holder this very moment.
                self._taken[entry.number] = entry
        return connected
