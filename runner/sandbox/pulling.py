"""Pulling container images from registries, which apptainer does, and converts them to SIF files."""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

from runner import retry
from runner.errors import ExperimentError, MachineError, RunnerError, Unavailable
from runner.message.request_artifacts import Artifact
from runner.place import remove
from runner.retry import Patience
from runner.sandbox import registry
from runner.sandbox.base import Job
from runner.sandbox.containers import for_program, run_noted
from runner.sandbox.references import reference
from runner.storage.base import BasicCredentials

# How long a name stands for the same image where nobody says what it stands for. In seconds.
_DAY = 86400

# The operator's variables that a pull is to see.
_SETTINGS = re.compile(r"(APPTAINER|SINGULARITY|DOCKER|SSL_CERT)_\w+|\w+_proxy", re.IGNORECASE)
_WITHOUT_TLS = ("APPTAINER_NOHTTPS", "SINGULARITY_NOHTTPS")

# What registries say of a name that they do not have, or do not show; and what shows that it is this machine's fault.
_REFUSED = re.compile(
    r"manifest unknown|name unknown|unauthorized|authentication required|denied|does not exist|invalid reference"
    r"|\b40[134]\b|unsupported",
    re.IGNORECASE,
)
_OURS = re.compile(r"no space left|no default remote|executable file not found", re.IGNORECASE)


@dataclass(frozen=True)
class Source:
    """What is pulled: a reference, by digest if its registry tells that, with the message's own login if it has one."""

    reference: str
    login: BasicCredentials | None

    @property
    def version(self) -> list[str]:
        """Tell apart what may be another image than yesterday, and what another message may not see."""
        pinned = "@sha256:" in self.reference or "sha256." in self.reference
        login = f"{self.login.user}:{self.login.password}" if self.login else ""
        return [self.reference, "" if pinned else str(time.time() // _DAY), login]


def source(artifact: Artifact) -> Source:
    """Say what an image's reference stands for just now."""
    wanted = reference(artifact)
    login = artifact.credentials if isinstance(artifact.credentials, BasicCredentials) else None
    if wanted.startswith("docker://"):
        plain = any(os.environ.get(name, "").lower() in ("1", "true", "yes") for name in _WITHOUT_TLS)
        wanted = registry.pinned(wanted, login, plain=plain) or wanted
    return Source(wanted, login)


def pull(job: Job, program: str, wanted: Source, path: Path) -> None:
    """Make a SIF file of what is pulled. Raises ExperimentError, Unavailable, MachineError."""
    patience = Patience(job.order.options.store_patience, first=1.0)
    retry.call(lambda: _pull(job, program, wanted, path), patience, sleep=job.pause)


def _pull(job: Job, program: str, wanted: Source, path: Path) -> None:
    drafts = path.with_name("drafts")
    drafts.mkdir(exist_ok=True)
    argv = [program, "--silent", "pull", "--disable-cache", "--force", str(path), wanted.reference]
    try:
        complaint = run_noted(job, argv, _variables(job, wanted, drafts))
    finally:
        remove(drafts)
    if complaint:
        raise _failure(wanted, complaint)


def _variables(job: Job, wanted: Source, drafts: Path) -> dict[str, str]:
    """Return the operator's settings, the message's login, and where to put what is not whole yet."""
    own = {name: value for name, value in os.environ.items() if _SETTINGS.fullmatch(name)}
    for prefix in ("APPTAINER", "SINGULARITY"):
        own |= {f"{prefix}_CACHEDIR": str(drafts), f"{prefix}_TMPDIR": str(drafts)}
        if wanted.login:
            own[f"{prefix}_DOCKER_USERNAME"] = wanted.login.user
            own[f"{prefix}_DOCKER_PASSWORD"] = wanted.login.password
    return for_program(job, **own)


def _failure(wanted: Source, said: str) -> RunnerError:
    sentence = f"the image {wanted.reference} cannot be pulled: {said}"
    if _OURS.search(said):
        return MachineError(sentence)
    return ExperimentError(sentence, verdict="artifact") if _REFUSED.search(said) else Unavailable(sentence)
