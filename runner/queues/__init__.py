"""Queue servers, and which of their queues are read."""

from __future__ import annotations

import re
from collections.abc import Callable

_FIFO = ".fifo"


def carries_reports(name: str) -> bool:
    """Tell whether a queue is for reports, by its name; those of SQS may have to end in ``.fifo``."""
    return name.removesuffix(_FIFO).endswith("_response")


def responses_of(queue: str) -> tuple[str, ...]:
    """Return the names that the queue for a work queue's reports may have."""
    plain = f"{queue.removesuffix(_FIFO)}_response"
    return (f"{plain}{_FIFO}", f"{queue}_response", plain) if queue.endswith(_FIFO) else (plain,)


def matcher(match: str, mismatch: str) -> Callable[[str], bool]:
    """Return a test for the names of work queues: ``match`` has to be found in them, ``mismatch`` not, if it is given.

    Queues whose names end in ``_response`` carry reports and are never work queues (protocol section 3).
    """
    wanted, unwanted = re.compile(match), re.compile(mismatch) if mismatch else None

    def matches(name: str) -> bool:
        if carries_reports(name) or not wanted.search(name):
            return False
        return not (unwanted and unwanted.search(name))

    return matches
