"""What befalls experiments from outside: somebody deletes their queue, or a card of theirs breaks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from runner.machine.gpu_watch import GpuWatch
from runner.machine.procfs import tree
from runner.order import GpuState
from runner.supervisor.running import Running

# For how long a queue has to be gone until its experiments are stopped. In seconds.
_COOL_DOWN = 15.0


class Watching:
    """Watches over ``everybody`` that runs. ``clock`` gives monotonic seconds."""

    def __init__(self, everybody: list[Running], gpus: GpuWatch, clock: Callable[[], float]) -> None:
        self._everybody, self._gpus, self._clock = everybody, gpus, clock
        self._surveys = 0

    def heed_deletions(self) -> None:
        """Who deletes a queue wants nothing more of what came from it (protocol section 3)."""
        for running in self._everybody:
            if not running.server.deleted(running.queue):
                running.deleted_since = None
            elif running.deleted_since is None:
                running.deleted_since = self._clock()
            elif not running.told_to_stop and self._clock() >= running.deleted_since + _COOL_DOWN:
                running.log.warning("%s is stopped: its queue has been deleted", running)
                running.stop()

    def heed_gpus(self) -> None:
        """An experiment ends with the card that it runs on; one that failed waits for word of its cards."""
        self._gpus.tend()
        for running in self._everybody:
            if not running.fault and (fault := self._gpus.fault(running.allocation.gpus)):
                running.gpu_broke(fault)
            if running.doubted:
                running.doubted = False
                self._gpus.ask(partial(self._vouch, running))
        if self._surveys != self._gpus.surveys:
            self._surveys = self._gpus.surveys
            for running in (each for each in self._everybody if each.allocation.gpus):
                running.uses_gpus(self._gpus.memory_of(tree(running.child.pid)))

    def _vouch(self, running: Running) -> None:
        if running in self._everybody:
            running.child.tell_gpus(GpuState(self._gpus.fault(running.allocation.gpus)))
