"""The contract between the supervisor and the process of one attempt.

In: one Order, a line of JSON on the attempt's standard input, which then stays open for lines with a GpuState (both in
order.py); its end means that the supervisor is gone. Out: events, each a line of JSON on the descriptor that
``--events FD`` names. At the end: the exit status.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import ClassVar

from runner.errors import RunnerError

DONE = 0
"""Exit status: the experiment completed, its results are stored."""
FAILED = 1
"""Exit status: the experiment failed, what it left is stored."""
GIVE_BACK = 75
"""Exit status (EX_TEMPFAIL): the runner's side failed or was stopped; the message is to be given back. A death by a
signal, or any other status, means the same."""


class ContractError(RunnerError):
    """The other side of the pipe does not speak this contract."""


@dataclass(frozen=True)
class Placed:
    """The attempt has its directory, ``<home>/experiments/<name>``."""

    kind: ClassVar[str] = "placed"
    name: str


@dataclass(frozen=True)
class Leased:
    """Nobody else runs the experiment, so it is run here; attempts count from 1, failed ones only.

    ``accession`` names this attempt's metadata.
    """

    kind: ClassVar[str] = "leased"
    attempt: int
    accession: str


@dataclass(frozen=True)
class Phase:
    """A stretch of the attempt begins: ``fetch``, ``prepare``, ``run`` or ``return``."""

    kind: ClassVar[str] = "phase"
    name: str


@dataclass(frozen=True)
class Cached:
    """An immutable artifact is there; ``hash`` is its object's name in the cache, ``hit``: it came from there."""

    kind: ClassVar[str] = "cached"
    label: str
    hash: str
    hit: bool


@dataclass(frozen=True)
class Used:
    """How many bytes of disk the attempt uses."""

    kind: ClassVar[str] = "used"
    disk: int


@dataclass(frozen=True)
class Advanced:
    """How far something is that takes long, in a sentence."""

    kind: ClassVar[str] = "advanced"
    sentence: str


@dataclass(frozen=True)
class Moved:
    """Bytes fetched from stores of a scheme (``s3``) and stored there, since this was told last."""

    kind: ClassVar[str] = "moved"
    scheme: str
    fetched: int = 0
    stored: int = 0


@dataclass(frozen=True)
class Started:
    """The experiment's own process runs, as the leader of its process group."""

    kind: ClassVar[str] = "started"
    pid: int


@dataclass(frozen=True)
class Line:
    """A line of the experiment's output; ``dropped`` ones before it were too many.

    ``error``: it came on stderr. ``document``: it is JSON, and was applied to the metadata.
    """

    kind: ClassVar[str] = "line"
    text: str
    error: bool = False
    document: bool = False
    dropped: int = 0


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint ended: how many artifacts were uploaded, or what went wrong."""

    kind: ClassVar[str] = "checkpoint"
    uploaded: int
    error: str = ""


@dataclass(frozen=True)
class Failing:
    """The experiment failed, and had GPUs: the attempt waits for a GpuState, for it may be their doing."""

    kind: ClassVar[str] = "failing"


_FAULTS = {
    "failed": "experiment",
    "misfit": "machine",
    "unavailable": "service",
    "stopped": "runner",
    "cancelled": "experimenter",
}


@dataclass(frozen=True)
class Finished:
    """How the attempt ended, and the one sentence that says so.

    ``outcome``, which decides about its message: ``completed`` · ``failed`` (the experiment's doing) · ``misfit`` (not
    on this machine) · ``unavailable`` (a service did not work) · ``stopped`` (from outside) · ``cancelled`` (by the
    experimenter) · ``elsewhere`` (it runs there already) · ``repeated`` (it was over before). ``last``: no other
    attempt may follow a failed one. ``verdict``, which says what it was: ``ok`` · ``script`` · ``oom`` · ``disk`` ·
    ``pip`` · ``timeout`` · ``lifetime`` · ``artifact`` · ``gpu`` · ``stopped`` · ``machine``, "" for no attempt at all.
    ``exit_status`` is that of the experiment's program, negative for a signal, None if it did not end by itself.
    """

    kind: ClassVar[str] = "finished"
    outcome: str
    sentence: str
    last: bool = False
    verdict: str = ""
    exit_status: int | None = None

    @property
    def status(self) -> int:
        """The exit status of the attempt that goes with the outcome."""
        return {"completed": DONE, "failed": FAILED}.get(self.outcome, GIVE_BACK)

    @property
    def fault(self) -> str:
        """Whose doing it was; "" when nothing went wrong."""
        return "machine" if self.verdict == "gpu" else _FAULTS.get(self.outcome, "")


Event = Placed | Leased | Phase | Cached | Used | Moved | Advanced | Started | Line | Checkpoint | Failing | Finished

_KINDS: dict[str, type[Event]] = {
    kind.kind: kind
    for kind in (Placed, Leased, Phase, Cached, Used, Moved, Advanced, Started, Line, Checkpoint, Failing, Finished)
}


def to_line(event: Event) -> bytes:
    """Write an event down."""
    return json.dumps({"event": event.kind, **asdict(event)}).encode() + b"\n"


def from_line(line: bytes) -> Event:
    """Read one back. Raises ContractError."""
    try:
        members = json.loads(line)
        return _KINDS[members.pop("event")](**members)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ContractError(f"an attempt's event cannot be read: {line[:100]!r}") from error
