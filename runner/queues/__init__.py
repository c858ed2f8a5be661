"""Queue servers, and which of their queues are read."""

from __future__ import annotations

import re
from collections.abc import Callable


def matcher(match: str, mismatch: str) -> Callable[[str], bool]:
    """Return a test for the names of work queues: ``match`` has to be found in them, ``mismatch`` not, if it is given.

    Queues whose names end in ``_response`` carry reports and are never work queues (protocol section 3).
    """
    wanted, unwanted = re.compile(match), re.compile(mismatch) if mismatch else None

    def matches(name: str) -> bool:
        if name.endswith("_response") or not wanted.search(name):
            return False
        return not (unwanted and unwanted.search(name))

    return matches
