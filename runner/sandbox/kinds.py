"""Which kind of sandbox an experiment runs in."""

from __future__ import annotations

from runner.sandbox.base import Job
from runner.sandbox.references import LABEL as IMAGE
from runner.sandbox.singularity import Singularity
from runner.sandbox.venv import VirtualEnvironment
from runner.storage.stores import Stores


def sandbox_for(job: Job, stores: Stores) -> VirtualEnvironment | Singularity:
    """Return the sandbox that a message asks for; an image is fetched from ``stores``."""
    return Singularity(job, stores) if IMAGE in job.request.artifacts else VirtualEnvironment(job)
