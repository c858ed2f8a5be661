"""Where threads see what the loop does, without disturbing it: snapshots that the loop makes when one is asked for."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as Late

from runner.loop import Loop
from runner.monitoring.status import Snapshot

# How long to wait for the loop, how young a snapshot is taken again, and after how long without a tick the loop hangs.
# In seconds.
_PATIENCE = 3.0
_FRESH = 0.2
_HUNG = 30.0


class Board:
    """One loop's board. ``beat`` and ``show`` are for the loop's thread, all else for any.

    ``clock`` gives monotonic seconds; ``patience`` is how long to wait for the loop.
    """

    def __init__(self, loop: Loop, clock: Callable[[], float] = time.monotonic, *, patience: float = _PATIENCE) -> None:
        self._loop, self._clock, self._patience = loop, clock, patience
        self._ticked = clock()
        self._make: Callable[[], Snapshot] | None = None
        self._last: tuple[float, Snapshot] | None = None

    def show(self, make: Callable[[], Snapshot]) -> None:
        """From now on, that makes the snapshots."""
        self._make = make

    def beat(self) -> None:
        """The loop ticks."""
        self._ticked = self._clock()

    @property
    def alive(self) -> bool:
        """False when the loop has not ticked for long."""
        return self._clock() - self._ticked < _HUNG

    def snapshot(self) -> Snapshot | None:
        """Return what there is to see, None when the loop does not come to show it."""
        if fresh := self._fresh:
            return fresh
        asked: Future[Snapshot | None] = Future()
        self._loop.add_callback(lambda: self._answer(asked))
        try:
            return asked.result(self._patience)
        except Late:
            return None

    @property
    def _fresh(self) -> Snapshot | None:
        last = self._last
        return last[1] if last and self._clock() - last[0] < _FRESH else None

    def _answer(self, asked: Future[Snapshot | None]) -> None:
        """In the loop, which goes on whatever happens here."""
        try:
            # Of many who ask at once, the first one's is good enough for all.
            snapshot = self._fresh or (self._make() if self._make else None)
        except Exception as error:  # noqa: BLE001 -- it is raised where it was asked for
            asked.set_exception(error)
            return
        if snapshot and snapshot is not self._fresh:
            self._last = self._clock(), snapshot
        asked.set_result(snapshot)
