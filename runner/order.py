"""What the supervisor tells the process of one attempt: its order, and how its GPUs are. See events.py for the rest.

An Order is a line of JSON on the attempt's standard input, which then stays open for lines with a GpuState.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from runner.events import ContractError
from runner.retry import Patience
from runner.secrets.masking import Secrets
from runner.secrets.redaction import secrets_of
from runner.storage.base import StoreOptions


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
