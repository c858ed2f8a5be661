"""What a runner does just now, as frozen dataclasses: for its page, for ``studio-runner top``, and for metrics.

Times are in seconds since 1970, durations in seconds, sizes in bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from runner.machine.allocate import Allocator
from runner.machine.plain_files import end_of
from runner.monitoring.metrics import Family

# What is shown of an experiment's output: lines, characters of each, and how many bytes are read for that.
_LINES, _LONGEST, _TAIL = 12, 400, 16 * 1024


@dataclass(frozen=True)
class Bar:
    """Something that is given out: how much of it there is, and is in use. ``unit`` is ``bytes``, ``slots`` or "".

    ``trouble`` says why nothing of it is given out just now, "" if it is.
    """

    name: str
    used: float
    total: float
    unit: str = ""
    trouble: str = ""


@dataclass(frozen=True)
class Experiment:
    """One under way; ``log`` is the path of its output, and for nobody's eyes."""

    queue: str
    queue_type: str
    key: str
    project: str
    attempt: int
    phase: str
    since: float
    phase_since: float
    resources: str
    log: str = ""
    lines: tuple[str, ...] = ()


@dataclass(frozen=True)
class Queue:
    """One that is read for work: why nothing is taken from it ("" if it is), and what of it is held.

    ``pause``: how long it is not asked. ``held``: its first message waits for resources. ``holding``: for how long the
    oldest message is held; ``window``: when a broker takes one back at the earliest. None: there is none, or no limit.
    """

    name: str
    queue_type: str
    running: int = 0
    why: str = ""
    pause: float = 0.0
    held: bool = False
    holding: float | None = None
    window: float | None = None


@dataclass(frozen=True)
class Source:
    """A broker, account or directory; ``trouble`` says why its queues are not known just now."""

    name: str
    queue_type: str
    succeeded: int
    failed: int
    trouble: str


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended, or a message that got none; ``decision`` is what became of the message."""

    time: float
    queue: str
    key: str
    attempt: int
    outcome: str
    verdict: str
    sentence: str
    seconds: float
    decision: str


@dataclass(frozen=True)
class Period:
    """How many attempts ended in the stretch of time that begins then."""

    begin: float
    completed: int = 0
    failed: int = 0
    other: int = 0


@dataclass(frozen=True)
class Status:
    """All of it. ``idle`` says why no work is taken at all, "" if it is."""

    version: str
    host: str
    process: int
    time: float
    started: float
    idle: str
    bars: tuple[Bar, ...] = ()
    experiments: tuple[Experiment, ...] = ()
    queues: tuple[Queue, ...] = ()
    sources: tuple[Source, ...] = ()
    outcomes: tuple[Outcome, ...] = ()
    periods: tuple[Period, ...] = ()
    kept: Mapping[str, int] = field(default_factory=dict)

    @property
    def fault(self) -> str:
        """Why the runner is not ready for work, "" if it is."""
        troubles = [f"{source.name}: {source.trouble}" for source in self.sources if source.trouble]
        return "; ".join(([f"takes no work: {self.idle}"] if self.idle else []) + troubles)

    def document(self) -> dict[str, Any]:
        """Return it as JSON has it, with the last lines of each experiment's output, which are read now."""
        shown = replace(
            self, experiments=tuple(replace(each, lines=tail(each.log), log="") for each in self.experiments)
        )
        return {**asdict(shown), "fault": self.fault}


@dataclass(frozen=True)
class Snapshot:
    """The status, and all counts."""

    status: Status
    families: tuple[Family, ...]


def bars(allocator: Allocator) -> tuple[Bar, ...]:
    """Return what an allocator gives out, and how much of it is in use."""
    total, free, gpus = allocator.total, allocator.free, allocator.gpus
    return (
        Bar("cores", total.cpus - free.cpus, total.cpus),
        Bar("memory", total.ram - free.ram, total.ram, "bytes"),
        Bar("disk", total.hdd - free.hdd, total.hdd, "bytes"),
        *(Bar(card.name, gpus.taken(card), card.slots, "slots", card.trouble) for card in gpus.cards),
    )


def tail(log: str) -> tuple[str, ...]:
    """Return the last lines of an experiment's output; none where it has put something else in the place of its log."""
    if not log:
        return ()
    try:
        data = end_of(Path(log), _TAIL)
    except OSError:
        return ()
    text = data.decode("utf-8", "replace").rstrip("\n")
    shown = [line.rstrip("\r").rpartition("\r")[2][:_LONGEST] for line in text.split("\n")]
    return tuple(shown[-_LINES:]) if text else ()
