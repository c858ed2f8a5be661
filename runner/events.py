"""The contract between the supervisor and the process of one attempt.

In: one Order, a line of JSON on the attempt's standard input, which then stays open for lines with a GpuState; its end
means that the supervisor is gone. Out: events, each a line of JSON on the descriptor that ``--events FD`` names. At the
end: the exit status.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

from runner.errors import RunnerError
from runner.retry import Patience
from runner.secrets.masking import Secrets
from runner.secrets.redaction import secrets_of
from runner.storage.base import StoreOptions

DONE = 0
"""Exit status: the experiment completed, its results are stored."""
FAILED = 1
"""Exit status: the experiment failed, what it left is stored."""
GIVE_BACK = 75
"""Exit status (EX_TEMPFAIL): the runner's side failed or was stopped; the message is to be given back. A death by a
signal, or any other status, means the same."""


@dataclass(frozen=True)
class Options:
    """What an attempt needs of the operator's options."""

    home: str
    file_roots: tuple[str, ...] = ()
    s3_ca: str = ""
    s3_cert: str = ""
    s3_key: str = ""
    google_credentials: str = ""
    google_metadata: bool = False
    google_endpoint: str = ""
    store_patience: float = 600.0
    index_patience: float = 300.0
    uv: str = "auto"
    environments_age: float = 0.0
    environments_size: int = 0
    env_allow: tuple[str, ...] = ()
    allow_env_secrets: bool = False
    link_local: bool = False
    schema_logs: bool = True
    debug: bool = False
    cache_dir: str = ""
    cache_size: int = 0
    enforce_ram: bool = True
    max_processes: int = 0
    max_file_size: int = 0
    max_output: int = 0
    hang_timeout: float = 0.0
    nice: int = 0
    run_as: str = ""
    singularity: str = "auto"
    echo: bool = False

    @property
    def of_stores(self) -> StoreOptions:
        """What stores are told of them."""
        return StoreOptions(
            s3_ca=self.s3_ca,
            s3_cert=self.s3_cert,
            s3_key=self.s3_key,
            google_credentials=self.google_credentials,
            google_metadata=self.google_metadata,
            google_endpoint=self.google_endpoint,
            file_roots=self.file_roots,
            link_local=self.link_local,
            patience=Patience(self.store_patience),
        )


@dataclass(frozen=True)
class Order:
    """What one attempt is to do: the request as its message had it, and what it was granted.

    ``failures`` counts the attempts that this runner saw fail, ``redeliveries`` what the broker counts; ``allowed`` is
    how many attempts may fail. ``python`` is the interpreter's path, ``version`` its full version; both are "" where a
    container has its own. ``reported``: the lines of the output are wanted as events. ``gpus`` are the UUIDs of the
    cards that it has got. ``fingerprints`` are those of the runner's secrets, which an attempt can recognise and does
    not have (see masking.py). ``variables`` are those that installers want, passwords included.
    """

    document: Mapping[str, Any] = field(repr=False)
    queue: str
    failures: int
    redeliveries: int | None
    allowed: int
    python: str
    version: str
    reported: bool
    options: Options
    gpus: tuple[str, ...] = ()
    fingerprints: tuple[tuple[str | int, ...], ...] = field(default=(), repr=False)
    variables: Mapping[str, str] = field(default_factory=dict, repr=False)

    def secrets(self) -> tuple[Secrets, Secrets]:
        """Return all secrets that must not be shown, the message's and the runner's, and then only the runner's.

        What the message has is none of the runner's: its writer knows it.
        """
        given = Secrets.of(secrets_of(self.document))
        own = Secrets.from_fingerprints(self.fingerprints).without(given)
        return given | own, own

    def to_line(self) -> bytes:
        """Write the order down."""
        return json.dumps(asdict(self)).encode() + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> Order:
        """Raise ContractError on anything that to_line did not make."""
        try:
            members = json.loads(line)
            options = members.pop("options")
            lists = {name: tuple(options[name]) for name in ("file_roots", "env_allow")}
            members["gpus"] = tuple(members["gpus"])
            members["fingerprints"] = tuple(map(tuple, members["fingerprints"]))
            return cls(**members, options=Options(**{**options, **lists}))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ContractError(f"the supervisor's order cannot be read: {error}") from error


@dataclass(frozen=True)
class GpuState:
    """What is wrong with the attempt's GPUs, "" when nothing is: told when one breaks, and in answer to Failing.

    None when nothing is said of that, but only how much of their ``memory`` the attempt's processes use, in bytes.
    """

    fault: str | None
    memory: int = 0

    def to_line(self) -> bytes:
        """Write it down."""
        return json.dumps(asdict(self)).encode() + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> GpuState:
        """Raise ContractError on anything that to_line did not make."""
        try:
            return cls(**json.loads(line))
        except (ValueError, TypeError) as error:
            raise ContractError(f"the supervisor's word cannot be read: {error}") from error


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


_FAULTS = {
    "failed": "experiment",
    "misfit": "machine",
    "unavailable": "service",
    "stopped": "runner",
    "cancelled": "experimenter",
}


@dataclass(frozen=True)
class Failing:
    """The experiment failed, and had GPUs: the attempt waits for a GpuState, for it may be their doing."""

    kind: ClassVar[str] = "failing"


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
