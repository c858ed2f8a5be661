"""The project's errors, named by who has to do something about them.

Foreign exceptions end in the module that calls the foreign library; everybody else sees only these. Each carries the
sentence that a person reads: what is wrong, where, and what to do.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable


class RunnerError(Exception):
    """Whatever this project raises on purpose.

    ``verdict`` is its word in the verdict on an attempt (see verdict.py), "" where the attempt's phase says enough.
    """

    def __init__(self, *words: object, verdict: str = "") -> None:
        super().__init__(*words)
        self.verdict = verdict


class _Faults(RunnerError):
    """Several faults of one input, found in one pass and told together."""

    def __init__(self, faults: str | Iterable[str]) -> None:
        self.faults: tuple[str, ...] = (faults,) if isinstance(faults, str) else tuple(faults)
        super().__init__(self.faults)

    def __str__(self) -> str:
        return "; ".join(self.faults)


class ConfigError(_Faults):
    """The operator has to change an option or the machine."""


class RequestError(_Faults):
    """The message is bad: no runner will ever be able to run it."""


class ExperimentError(RunnerError):
    """The attempt failed and it is the experiment's own doing: its code, requirements, artifacts or limits."""


class RequirementError(ExperimentError):
    """A requirement of the experiment's cannot be installed, here or elsewhere."""


class MachineError(RunnerError):
    """This machine cannot run the experiment; another one may."""


class Unavailable(RunnerError):
    """A broker, store or index does not answer as it should: the same call may succeed later."""


# Errors of a file system that say something of the machine, and nothing of who wanted to write there.
_MACHINES_OWN = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.ENFILE, errno.EMFILE, errno.ENOMEM)


def is_machines_own(error: OSError) -> bool:
    """True for a full or broken disk and the like."""
    return error.errno in _MACHINES_OWN
