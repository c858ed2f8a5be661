"""A loop while something is waited for, and a clock that stands still until it is told to go on."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from runner.loop import Loop

T = TypeVar("T")


class Clock:
    """Gives seconds, as ``time.monotonic`` does."""

    def __init__(self, now: float = 100.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def served(loop: Loop, look: Callable[[], T], *, seconds: float = 30.0) -> T:
    """Serve the loop until ``look`` returns something true, and return that; or what it returns when the time is up."""
    end = time.monotonic() + seconds
    while not (found := look()) and time.monotonic() < end:
        loop.run_once(0.05)
    return found
