"""Sharing the machine: what is asked for is reserved before an attempt starts and released when it ended."""

from __future__ import annotations

from dataclasses import dataclass, field

from runner.machine.gpus import Gpus, Grant, Wish
from runner.units import format_size


@dataclass(frozen=True)
class Resources:
    """Cores, and bytes of memory and disk."""

    cpus: int = 0
    ram: int = 0
    hdd: int = 0

    def within(self, other: Resources) -> bool:
        """True when ``other`` has at least as much of each."""
        return self.cpus <= other.cpus and self.ram <= other.ram and self.hdd <= other.hdd

    def __add__(self, other: Resources) -> Resources:
        return Resources(self.cpus + other.cpus, self.ram + other.ram, self.hdd + other.hdd)

    def __sub__(self, other: Resources) -> Resources:
        return Resources(self.cpus - other.cpus, self.ram - other.ram, self.hdd - other.hdd)

    def __str__(self) -> str:
        return f"{_cores(self.cpus)}, {format_size(self.ram)} ram, {format_size(self.hdd)} hdd"


def _cores(count: int) -> str:
    return f"{count} cpu" if count == 1 else f"{count} cpus"


@dataclass(frozen=True)
class Need(Resources):
    """What an experiment asks for: resources, and GPUs."""

    gpus: Wish = field(default_factory=Wish)

    def __str__(self) -> str:
        return super().__str__() + (f", {self.gpus}" if self.gpus else "")


@dataclass(frozen=True)
class Allocation:
    """What an experiment has got: all it asked for, and of which GPUs."""

    need: Need
    gpus: tuple[Grant, ...] = ()


class Allocator:
    """Keeps account of one machine: what is given out never exceeds what there is."""

    def __init__(self, total: Resources, gpus: Gpus | None = None) -> None:
        self.total = total
        self.free = total
        self.gpus = gpus or Gpus()
        self._held: list[Allocation] = []

    def could_ever(self, need: Need) -> bool:
        """True when the empty machine would be large enough."""
        return need.within(self.total) and self.gpus.could_ever(need.gpus)

    def fits(self, need: Need) -> bool:
        """True when so much is free just now."""
        return need.within(self.free) and self.gpus.fits(need.gpus)

    def lacks_only_gpus(self, need: Need) -> bool:
        """True when it is a matter of GPUs that it does not fit just now."""
        return need.within(self.free) and not self.gpus.fits(need.gpus)

    def offered(self, need: Need) -> str:
        """Say what there is at most of what is asked for."""
        return str(self.total) + (f", {self.gpus.offered()}" if need.gpus else "")

    def left(self) -> str:
        """Say what is free."""
        return ", ".join([str(self.free), *self.gpus.left()])

    def lacking(self, need: Need) -> str:
        """Say of what there is not enough just now: how much is needed, and how much is free."""
        pairs = [
            (_cores(need.cpus), str(self.free.cpus), need.cpus > self.free.cpus),
            (f"{format_size(need.ram)} ram", format_size(self.free.ram), need.ram > self.free.ram),
            (f"{format_size(need.hdd)} hdd", format_size(self.free.hdd), need.hdd > self.free.hdd),
        ]
        words = [f"{needed}, and {free} are free" for needed, free, lacks in pairs if lacks]
        if not self.gpus.fits(need.gpus):
            words.append(self.gpus.lacking(need.gpus))
        return ", ".join(words)

    def reserve(self, need: Need) -> Allocation:
        """Take ``need`` out of what is free. Ask ``fits`` first: it raises ValueError when it does not."""
        if not need.within(self.free):
            raise ValueError(f"{need} do not fit into {self.free}")
        allocation = Allocation(need, self.gpus.reserve(need.gpus))
        self.free -= need
        self._held.append(allocation)
        return allocation

    def release(self, allocation: Allocation) -> None:
        """Give back what was reserved, once. Raises ValueError when it was not."""
        if allocation not in self._held:
            raise ValueError(f"{allocation.need} were not reserved")
        self._held.remove(allocation)
        self.gpus.release(allocation.gpus)
        self.free += allocation.need
