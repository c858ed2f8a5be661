"""Who has got which GPU: slots and memory of cards, which experiments of one project may share."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from runner.machine.fitting import Room, Share, fit
from runner.units import format_size


@dataclass(frozen=True)
class Wish:
    """What an experiment wants: ``slots`` on each of ``count`` cards, or in all when ``count`` is 0.

    ``memory`` is in bytes on each card, 0 for the slots' part of it. Only experiments of one ``group`` share a card.
    """

    slots: int = 0
    count: int = 0
    memory: int = 0
    group: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return self.slots > 0

    def __str__(self) -> str:
        words = f"{self.slots} GPU slot{'s' * (self.slots != 1)}"
        if self.count:
            words += f" on each of {self.count} GPUs" if self.count > 1 else " on one GPU"
        return words + (f" with {format_size(self.memory)} of GPU memory" if self.memory else "")


@dataclass(frozen=True)
class Card:
    """A GPU, or a MIG instance of one (``part``). ``memory`` is in bytes.

    ``name`` is as people know it, ``GPU 0 (Tesla V100)``. ``trouble`` says why nothing of it may be given out now, and
    goes behind the name; ``broken``: nor ever.
    """

    uuid: str
    name: str
    slots: int
    memory: int
    part: bool = False
    trouble: str = ""
    broken: bool = False

    def __str__(self) -> str:
        return self.name

    @property
    def size(self) -> str:
        """What it has, in words."""
        return f"{_slots(self.slots)} and {format_size(self.memory)}"


@dataclass(frozen=True)
class Grant:
    """What one experiment has got of one card."""

    uuid: str
    slots: int
    memory: int
    group: tuple[str, ...]


class Gpus:
    """Keeps account of the cards. ``absent`` says why there are none, where that is known."""

    def __init__(self, cards: Iterable[Card] = (), absent: str = "") -> None:
        self._cards = {card.uuid: card for card in cards}
        self._grants: list[Grant] = []
        self.absent = absent

    @property
    def cards(self) -> list[Card]:
        """All cards that are known, in the driver's order."""
        return list(self._cards.values())

    @property
    def held(self) -> set[str]:
        """The UUIDs of the cards of which something is given out."""
        return {grant.uuid for grant in self._grants}

    def renew(self, cards: Iterable[Card], absent: str = "") -> None:
        """Take over what cards there are now. What is given out stays so until it is released."""
        self._cards = {card.uuid: card for card in cards}
        self.absent = absent

    def could_ever(self, wish: Wish) -> bool:
        """True when the cards that are not broken would do, if nobody used them."""
        whole = [Room(card.uuid, card.slots, card.memory, card.part, card.slots, card.memory) for card in self._sound]
        return not wish or bool(fit(wish.slots, wish.count, wish.memory, whole))

    def fits(self, wish: Wish) -> bool:
        """True when so much is free just now."""
        return not wish or bool(self._fit(wish))

    def reserve(self, wish: Wish) -> tuple[Grant, ...]:
        """Take it from where the least is left over. Raises ValueError when it does not fit."""
        shares = self._fit(wish) if wish else []
        if wish and not shares:
            raise ValueError(f"{wish} do not fit")
        grants = tuple(Grant(share.uuid, share.slots, share.memory, wish.group) for share in shares)
        self._grants += grants
        return grants

    def release(self, grants: Iterable[Grant]) -> None:
        """Give back what was reserved. Raises ValueError when it was not."""
        for grant in grants:
            if grant not in self._grants:
                raise ValueError(f"{grant} was not reserved")
            self._grants.remove(grant)

    def lacking(self, wish: Wish) -> str:
        """Say how much is wanted, and card by card why there is not so much just now."""
        return f"{wish}; " + (", ".join(self._state(card, wish) for card in self.cards) or f"there is {self._none}")

    def offered(self) -> str:
        """Say what there is at most."""
        whole = [f"{card}, which {card.trouble}" if card.broken else f"{card} with {card.size}" for card in self.cards]
        return ", ".join(whole) or self._none

    def named(self, grants: Iterable[Grant]) -> str:
        """Name the cards of some grants, and the slots."""
        names = {card.uuid: str(card) for card in self.cards}
        return ", ".join(f"{_slots(grant.slots)} of {names.get(grant.uuid, grant.uuid)}" for grant in grants)

    def left(self) -> list[str]:
        """Say of each card what is free."""
        return [f"{card} {card.trouble}" if card.trouble else self._left_of(card) for card in self.cards]

    def taken(self, card: Card) -> int:
        """Return how many slots of a card are given out."""
        return sum(grant.slots for grant in self._grants if grant.uuid == card.uuid)

    def _left_of(self, card: Card) -> str:
        return f"{card.slots - self.taken(card)} of {_slots(card.slots)} of {card}"

    @property
    def _none(self) -> str:
        return "no GPU" + (f" ({self.absent})" if self.absent else "")

    @property
    def _sound(self) -> list[Card]:
        return [card for card in self.cards if not card.broken]

    def _fit(self, wish: Wish) -> list[Share]:
        usable = [self._room(card, wish.group) for card in self._sound if not card.trouble]
        return fit(wish.slots, wish.count, wish.memory, usable)

    def _room(self, card: Card, group: tuple[str, ...]) -> Room:
        """Return what is free of a card for a group."""
        grants = [grant for grant in self._grants if grant.uuid == card.uuid]
        taken = card.slots if any(grant.group != group for grant in grants) else sum(grant.slots for grant in grants)
        memory = card.memory - sum(grant.memory for grant in grants)
        return Room(card.uuid, card.slots, card.memory, card.part, max(0, card.slots - taken), max(0, memory))

    def _state(self, card: Card, wish: Wish) -> str:
        if card.trouble:
            return f"{card} {card.trouble}"
        if any(grant.uuid == card.uuid and grant.group != wish.group for grant in self._grants):
            return f"{card} is used by another queue or project"
        room = self._room(card, wish.group)
        memory = f" and {format_size(room.free_memory)}" if wish.memory else ""
        return f"{card} has {room.free}{memory} free"


def _slots(count: int) -> str:
    return f"{count} slot{'s' * (count != 1)}"
