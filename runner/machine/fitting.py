"""Which cards to take slots from, so that the least is left over. Values in, values out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Room:
    """What a card has, and what of that is free for who asks. Memory is in bytes.

    ``part``: a MIG instance. A program sees only one of those, and no card beside it.
    """

    uuid: str
    slots: int
    memory: int
    part: bool
    free: int
    free_memory: int

    def needed(self, slots: int, memory: int) -> int:
        """Return the memory that goes with so many slots: what is asked for, or their part of the card's."""
        return memory or self.memory * slots // self.slots

    def holds(self, slots: int, memory: int) -> bool:
        """True when so much is free."""
        return self.free >= slots and self.free_memory >= self.needed(slots, memory)


@dataclass(frozen=True)
class Share:
    """So much of one card."""

    uuid: str
    slots: int
    memory: int


def fit(slots: int, count: int, memory: int, rooms: Sequence[Room]) -> list[Share]:
    """Choose cards, in the order of ``rooms``; [] when it does not fit. ``rooms`` are all cards that may be used.

    ``slots`` on each of ``count`` cards; without a count all on one card, and on several where none is large enough.
    Each has to have ``memory`` bytes free.
    """
    if count:
        return _each(slots, memory, [room for room in rooms if not room.part or count == 1], count)
    if any(room.slots >= slots and room.memory >= memory for room in rooms):
        return _each(slots, memory, rooms, 1)
    return _spread(slots, memory, [room for room in rooms if not room.part])


def _each(slots: int, memory: int, rooms: Sequence[Room], count: int) -> list[Share]:
    fitting = sorted(
        (room for room in rooms if room.holds(slots, memory)), key=lambda room: (room.free, room.free_memory)
    )
    if len(fitting) < count:
        return []
    return [_share(room, slots, memory) for room in rooms if room in fitting[:count]]


def _spread(slots: int, memory: int, rooms: Sequence[Room]) -> list[Share]:
    """Take all that is free of several cards, but for the last: the least that is left over, then the fewest."""
    rooms = [room for room in rooms if room.free and room.holds(room.free, memory)]
    best: dict[int, tuple[Room, ...]] = {0: ()}
    for room in rooms:
        for total, chosen in list(best.items()):
            more = total + room.free
            if total < slots and (more not in best or len(best[more]) > len(chosen) + 1):
                best[more] = (*chosen, room)
    least = min((total for total in best if total >= slots), default=0)
    surplus = least - slots
    # It is less than any of them has free, or that one would not be needed.
    return [_share(room, room.free - (surplus if room is best[least][-1] else 0), memory) for room in best[least]]


def _share(room: Room, slots: int, memory: int) -> Share:
    return Share(room.uuid, slots, room.needed(slots, memory))
