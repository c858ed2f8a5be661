"""Sharing the machine: what is asked for is reserved before an attempt starts and released when it ended."""

from __future__ import annotations

from dataclasses import dataclass, fields

from runner.units import format_size


@dataclass(frozen=True)
class Resources:
    """Cores, and bytes of memory and disk."""

    cpus: int = 0
    ram: int = 0
    hdd: int = 0

    def within(self, other: Resources) -> bool:
        """True when ``other`` has at least as much of each."""
        return all(getattr(self, each.name) <= getattr(other, each.name) for each in fields(self))

    def __add__(self, other: Resources) -> Resources:
        return Resources(self.cpus + other.cpus, self.ram + other.ram, self.hdd + other.hdd)

    def __sub__(self, other: Resources) -> Resources:
        return Resources(self.cpus - other.cpus, self.ram - other.ram, self.hdd - other.hdd)

    def __str__(self) -> str:
        return f"{self.cpus} cpus, {format_size(self.ram)} ram, {format_size(self.hdd)} hdd"


class Allocator:
    """Keeps account of one machine: what is given out never exceeds what there is."""

    def __init__(self, total: Resources) -> None:
        self.total = total
        self.free = total

    def could_ever(self, need: Resources) -> bool:
        """True when the empty machine would be large enough."""
        return need.within(self.total)

    def fits(self, need: Resources) -> bool:
        """True when so much is free just now."""
        return need.within(self.free)

    def lacking(self, need: Resources) -> str:
        """Say of what there is not enough just now: how much is needed, and how much is free."""
        pairs = [
            (str(need.cpus), str(self.free.cpus), "cpus", need.cpus > self.free.cpus),
            (format_size(need.ram), format_size(self.free.ram), "ram", need.ram > self.free.ram),
            (format_size(need.hdd), format_size(self.free.hdd), "hdd", need.hdd > self.free.hdd),
        ]
        return ", ".join(f"{needed} {name}, and {free} are free" for needed, free, name, lacks in pairs if lacks)

    def reserve(self, need: Resources) -> None:
        """Take ``need`` out of what is free. Ask ``fits`` first: it raises ValueError when it does not."""
        if not self.fits(need):
            raise ValueError(f"{need} do not fit into {self.free}")
        self.free -= need

    def release(self, need: Resources) -> None:
        """Give back what was reserved, once for each reserve."""
        if not (self.free + need).within(self.total):
            raise ValueError(f"{need} were not reserved")
        self.free += need
