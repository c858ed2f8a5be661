"""The one place that tries again."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from runner.errors import Unavailable

T = TypeVar("T")


@dataclass(frozen=True)
class Patience:
    """How long to go on asking a service that does not answer; all in seconds. A total of 0 means one try only."""

    total: float
    first: float = 0.5
    longest: float = 30.0

    def delays(self, jitter: Callable[[], float] = random.random) -> Iterator[float]:
        """Yield delays without end: each about twice the last, up to ``longest``.

        Each is shortened by up to a half at random (``jitter`` returns 0 to 1), so that the runners which one failing
        service has stopped together do not come back to it together.
        """
        delay = self.first
        while True:
            yield delay * (1 - jitter() / 2)
            delay = min(delay * 2, self.longest)


def call(
    action: Callable[[], T],
    patience: Patience,
    *,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> T:
    """Return what ``action`` returns, calling it again for as long as it raises Unavailable and patience lasts.

    The last Unavailable is raised; any other exception at once. No try starts after ``patience.total`` seconds, but
    the last one may begin right then, and takes as long as it takes.
    """
    deadline = clock() + patience.total
    for delay in patience.delays():
        try:
            return action()
        except Unavailable:
            left = deadline - clock()
            if left <= 0:
                raise
        sleep(min(delay, left))
    raise AssertionError("the delays have no end")
