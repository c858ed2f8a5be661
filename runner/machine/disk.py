"""One account of the disk: work directories come first, and what is kept only to save time makes room for them."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Thread

from runner.errors import MachineError, RunnerError
from runner.machine.hoard import LEFT_FREE, Hoard
from runner.units import format_size

log = logging.getLogger(__name__)

# How often hoards are measured, which grow while attempts run. In seconds.
_PACE = 30.0


@dataclass(frozen=True)
class Claim:
    """What one attempt was granted of the disk, and what it is known to use. In bytes."""

    granted: int
    used: int

    @property
    def most(self) -> int:
        """What it has to be reckoned with."""
        return max(self.granted, self.used)

    @property
    def to_come(self) -> int:
        """What it may yet write."""
        return max(0, self.granted - self.used)


class Disk:
    """The account of the file system that ``directory`` is on, of which ``limit`` bytes are ours.

    ``hoards`` have names; the first ones give way first. Measuring them and removing files is slow, so it is done in a
    thread, one job at a time. Those ``elsewhere`` are on other disks, and only measured. ``clock`` gives monotonic
    seconds.
    """

    def __init__(
        self,
        directory: Path,
        limit: int,
        hoards: Mapping[str, Hoard],
        clock: Callable[[], float],
        *,
        elsewhere: Mapping[str, Hoard] | None = None,
    ) -> None:
        self._directory, self._limit, self._hoards, self._clock = directory, limit, hoards, clock
        self._elsewhere = elsewhere or {}
        self._sizes = {name: hoard.used() for name, hoard in hoards.items()}
        self._others = {name: hoard.used() for name, hoard in self._elsewhere.items()}
        self._job: Thread | None = None
        self._measured = clock()

    @property
    def kept(self) -> dict[str, int]:
        """What all hoards took of their disks when they were measured last, in bytes."""
        return {**self._others, **self._sizes}

    def check(self, need: int, claims: Collection[Claim]) -> None:
        """Make sure that an attempt which wants ``need`` bytes may start beside others.

        Raises MachineError when it may not, or when room has to be made first: that is begun then.
        """
        excess = self._excess(need, claims)
        if excess <= 0:
            return
        kept = sum(self._sizes.values())
        missing = f"an experiment needs {format_size(need)} of disk, and {format_size(max(0, need - excess))} are free"
        if kept:
            self._start(partial(self._make_room, kept - excess))
            missing += "; what was kept to save time is being removed"
        raise MachineError(missing)

    def tend(self, claims: Collection[Claim]) -> None:
        """Keep the hoards within bounds while attempts run. To be called often."""
        if (self._hoards or self._elsewhere) and self._clock() >= self._measured + _PACE:
            self._measured = self._clock()
            self._start(partial(self._measure, claims))

    def allowance(self, name: str, wanted: int, claims: Collection[Claim]) -> int:
        """Return how large a hoard may get, which ``wanted`` so much, beside what is claimed and the other hoards."""
        if name not in self._hoards:
            return wanted  # it is on another disk
        others = sum(size for other, size in self._sizes.items() if other != name)
        return max(0, min(wanted, self._limit - sum(claim.most for claim in claims) - others))

    def _excess(self, need: int, claims: Collection[Claim]) -> int:
        """Return how much has to go so that there is room for ``need`` bytes: of what is ours, and on the disk."""
        ours = sum(self._sizes.values()) + sum(claim.most for claim in claims) + need - self._limit
        disks = need + sum(claim.to_come for claim in claims) + LEFT_FREE - free(self._directory)
        return max(ours, disks)

    def _start(self, job: Callable[[], None]) -> None:
        """Begin a job unless one is under way."""
        if self._job is None or not self._job.is_alive():
            self._job = Thread(target=_quietly, args=(job,), daemon=True)
            self._job.start()

    def _measure(self, claims: Collection[Claim]) -> None:
        for name, hoard in self._elsewhere.items():
            self._others[name] = hoard.used()
        for name, hoard in self._hoards.items():
            self._sizes[name] = hoard.used()
        if (excess := self._excess(0, claims)) > 0:
            self._make_room(sum(self._sizes.values()) - excess)

    def _make_room(self, limit: int) -> None:
        """Shrink the hoards to so many bytes together."""
        for name, hoard in self._hoards.items():
            others = sum(size for other, size in self._sizes.items() if other != name)
            if self._sizes[name] + others > limit:
                before, self._sizes[name] = self._sizes[name], hoard.shrink(max(0, limit - others))
                log.info("%s: %s are removed to make room", name, format_size(max(0, before - self._sizes[name])))


def free(directory: Path) -> int:
    """Return the bytes that we may yet write on the file system that a directory is on."""
    status = os.statvfs(directory)
    return status.f_bavail * status.f_frsize


def _quietly(job: Callable[[], None]) -> None:
    try:
        job()
    except (RunnerError, OSError) as error:
        log.warning("no room can be made on the disk: %s", error)
