"""The process of the next attempt, started ahead, so that an order does not wait for imports."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection

from runner.errors import MachineError
from runner.loop import Loop
from runner.supervisor.child import Child

log = logging.getLogger(__name__)

# How long not to try again when the process of an attempt cannot be started. In seconds.
_PAUSE = 10.0


class Spare:
    """Keeps one Child ready. ``keep``: see Child. ``clock`` gives monotonic seconds."""

    def __init__(self, loop: Loop, keep: Collection[str], clock: Callable[[], float]) -> None:
        self._loop, self._keep, self._clock = loop, keep, clock
        self._child: Child | None = None
        self._not_before = 0.0

    def prepare(self) -> None:
        """See that there is one, unless starting one has failed a short while ago."""
        if self._child is not None and self._child.ended() is not None:
            log.error("the process of an attempt ended before it had anything to do: see the lines above")
            self._child.close()
            self._child = None
            self._not_before = self._clock() + _PAUSE
        if self._child is None and self._clock() >= self._not_before:
            try:
                self._child = Child(self._loop, self._keep)
            except MachineError as error:
                log.error("%s", error)
                self._not_before = self._clock() + _PAUSE

    def take(self) -> Child:
        """Hand it over, or a new one. Raises MachineError."""
        child, self._child = self._child or Child(self._loop, self._keep), None
        return child

    def close(self) -> None:
        """End it."""
        if self._child:
            self._child.close()
            self._child.wait(5.0)
