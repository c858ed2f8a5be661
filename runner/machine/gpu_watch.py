"""Looking after the GPUs while the runner works: which are used by others, and which broke.

The driver is asked in a thread. Whatever it does there, the loop goes on: a driver that fails or hangs only means that
no GPU is given out.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Protocol

from runner.errors import RunnerError
from runner.loop import Loop
from runner.machine import cards, visible
from runner.machine.gpu_faults import Faults
from runner.machine.gpus import Card, Gpus, Grant
from runner.machine.nvml import NoDriver, Sight, Survey
from runner.machine.procfs import tree
from runner.units import format_size

log = logging.getLogger(__name__)

# In seconds: how often cards are looked at; how soon again when it was in an experiment's last moment; how long that
# may take.
_PACE = 10.0
_SOON = 1.0
_OVERDUE = 30.0
# What more than this part of a card's memory is used for by nobody who is seen has somebody who is not: containers do
# not see each other's processes.
_NOISE = 0.1
# There where the cards are Windows': in WSL 2, and in containers of Docker Desktop. The driver does not name Windows'
# processes then, and what the desktop draws is memory that somebody unseen uses.
_WINDOWS = Path("/dev/dxg")
# What computes for others by CUDA's Multi-Process Service; as long as processes' names are.
_SERVER = "nvidia-cuda-mps-server"[:15]


class Library(Protocol):
    """What tells of the cards; ``nvml.Nvml`` is one."""

    def survey(self) -> Survey:
        """Look at all of them. May take long. Raises Silent."""


@dataclass(frozen=True)
class _Seen:
    """A survey, or why there is none, and the processes of our own experiments meanwhile.

    ``held`` are the cards of which something was given out meanwhile.
    """

    held: Collection[str]
    survey: Survey | None
    ours: Collection[int] = ()
    error: RunnerError | None = None


class GpuWatch:
    """Keeps the ledger of GPUs up to date. ``library`` opens the library, in the thread; None: there is none.

    ``clock`` gives monotonic seconds.
    """

    def __init__(
        self, loop: Loop, gpus: Gpus, library: Callable[[], Library] | None, clock: Callable[[], float]
    ) -> None:
        self._loop, self._gpus, self._library, self._clock = loop, gpus, library, clock
        self._orders: SimpleQueue[frozenset[str]] = SimpleQueue()
        self._since: float | None = None
        self._due = clock()
        self._asking: list[Callable[[], None]] = []
        self._answering: list[Callable[[], None]] = []
        self._faults = Faults()
        self._held: frozenset[str] = frozenset()
        self._warned = ""
        self._remarked: set[str] = set()
        self._using: Counter[int] = Counter()
        self._numbers: dict[str, int] = {}
        self.surveys = 0
        """How often the cards have been looked at with success."""

    def begin(self, patience: float) -> None:
        """Look for the first time, and wait so many seconds at most for what is found. To be called once."""
        if self._library is None:
            return
        Thread(
            target=_serve, args=(self._library, self._orders, self._hear, self._loop), name="gpus", daemon=True
        ).start()
        self.tend()
        end = self._clock() + patience
        while self._since is not None and self._clock() < end:
            self._loop.run_once(end - self._clock())
        if self._since is not None:
            self._gpus.renew((), "NVIDIA's driver has not answered yet")

    def tend(self) -> None:
        """See that cards are looked at, and that it does not take too long. To be called often."""
        now = self._clock()
        if self._library is None:
            return
        if self._since is None and now >= self._due:
            self._since, self._held = now, frozenset(self._gpus.held)
            self._answering, self._asking = self._asking, []
            self._orders.put(self._held)
        elif self._since is not None and now >= self._since + _OVERDUE:
            self._distrust(f"NVIDIA's driver has not answered for {_OVERDUE:.0f} s")

    def ask(self, then: Callable[[], None]) -> None:
        """Look anew, and call ``then`` when what is found is known; never if the driver does not answer."""
        if self._library is None:
            then()
        else:
            self._asking.append(then)
            self._due = self._clock()
            self.tend()

    def fault(self, grants: Iterable[Grant]) -> str:
        """Say which of some cards broke, and how; "" when none did."""
        return next(filter(None, (self._faults.told(grant.uuid) for grant in grants)), "")

    def memory_of(self, pids: Iterable[int]) -> int:
        """Return how many bytes of the cards' memory some processes used when these were looked at last."""
        return sum(self._using[pid] for pid in pids)

    # In the loop

    def _hear(self, seen: _Seen) -> None:
        self._since, self._due = None, self._clock() + _PACE
        if seen.survey:
            self._warned = ""
            self.surveys += 1
            self._using = Counter()
            for sight in seen.survey.sights:
                if sight.instances is None:  # a split card tells all processes of its instances again
                    self._using.update(sight.processes)
            self._take_over(seen, self._numbered(seen.survey))
        elif isinstance(seen.error, NoDriver):
            self._library = None
            self._gpus.renew((), str(seen.error))
        else:
            self._distrust(str(seen.error))
        answering, self._answering = self._answering, []
        for then in answering:
            then()
        if self._asking:
            self._due = self._clock()

    def _distrust(self, why: str) -> None:
        """Give out no card until the driver answers again."""
        if self._warned != why:
            self._warned = why
            log.warning("no GPU is given out: %s", why)
        known = [replace(card, trouble=card.trouble or "is not known to be well") for card in self._gpus.cards]
        self._gpus.renew(known, why)

    def _take_over(self, seen: _Seen, survey: Survey) -> None:
        self._faults.learn(survey)
        now = replace(seen, held={*seen.held, *self._gpus.held})  # what was given out since is used by right, too
        sights = {sight.uuid: sight for sight in (*survey.sights, *self._faults.broken())}
        for word in set(visible.unknown(list(sights.values()), os.environ)) - self._remarked:
            self._remarked.add(word)
            log.warning("%s: there is no such GPU", word)
        found = []
        for sight in visible.allowed(list(sights.values()), os.environ):
            fault = self._faults.of(sight)
            trouble = fault or sight.error or _used_by_others(sight, now)
            if trouble and not fault and sight.uuid in self._held:
                self._due = self._clock() + _SOON
            if sight.instances is None:
                found.append(replace(_card(sight, sights), trouble=trouble, broken=bool(fault)))
        absent = "" if found else self._absence(survey)
        self._tell(found)
        self._gpus.renew(found, absent)

    def _numbered(self, survey: Survey) -> Survey:
        """Give each card the number that it had first: the others move up when one vanishes, but are no others."""
        numbers = self._numbers
        sights = [replace(each, index=numbers.setdefault(each.uuid, each.index)) for each in survey.sights]
        return replace(survey, sights=tuple(sights))

    def _absence(self, survey: Survey) -> str:
        if any(sight.instances is not None for sight in survey.sights):
            return "MIG is on, but there are no instances that may be used"
        return (
            "CUDA_VISIBLE_DEVICES or NVIDIA_VISIBLE_DEVICES hides all" if survey.sights else "NVIDIA's driver sees none"
        )

    def _tell(self, found: Iterable[Card]) -> None:
        """Log what has changed in who uses a card."""
        before = {card.uuid: card.trouble for card in self._gpus.cards}
        for card in found:
            if not card.broken and card.trouble != before.get(card.uuid, ""):
                log.info("%s %s", card, card.trouble or "can be given out again")


def _serve(
    library: Callable[[], Library], orders: SimpleQueue[frozenset[str]], hear: Callable[[_Seen], None], loop: Loop
) -> None:
    """The thread: make a survey for each order, and have it heard in the loop."""
    opened: Library | None = None
    while True:
        held = orders.get()
        try:
            opened = opened or library()
            before = tree(os.getpid())
            survey = opened.survey()
            seen = _Seen(held, survey, {*before, *tree(os.getpid())})
        except RunnerError as error:
            seen = _Seen(held, None, error=error)
        loop.add_callback(partial(hear, seen))


def _used_by_others(sight: Sight, seen: _Seen) -> str:
    """Say who else uses a card, "" when nobody does.

    A process that is not to be seen here may be one of our own experiments', as the driver numbers it: on a card that
    one of them has, it does not count.
    """
    users = sorted(pid for pid in sight.processes if _name(pid) != _SERVER)
    others = [pid for pid in users if pid not in seen.ours]
    if sight.uuid in seen.held:
        others = [pid for pid in others if Path(f"/proc/{pid}").exists()]
        return f"is used by others, too (process {others[0]})" if others else ""
    if others:
        return f"is used by others (process {others[0]})"
    if users:  # it has chosen its cards itself
        return f"is used by an experiment that was not given it (process {users[0]})"
    unseen = sight.used - sight.displayed - sum(sight.processes.values())
    if unseen > sight.memory * _NOISE and not _WINDOWS.exists():
        return f"is used by others ({format_size(unseen)} of its memory)"
    return ""


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def _card(sight: Sight, sights: Mapping[str, Sight]) -> Card:
    whole = sights.get(sight.parent, sight)
    slots = cards.slots_of(whole.name, whole.memory, whole.capability)
    if sight.parent:
        slots = cards.slots_of_part(slots, whole.memory, sight.memory)
    return Card(sight.uuid, str(sight), slots, sight.memory, part=bool(sight.parent))
