"""How a runner ends that was told to by signals, and what becomes of the experiments that run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from runner.lifecycle import Signals
from runner.supervisor.running import Running
from runner.units import format_duration

log = logging.getLogger(__name__)

STOP_PATIENCE = 60.0
"""How long attempts may take to store their results once they were told to stop; then they are killed. In seconds."""
_HURRIED_PATIENCE = 10.0


class Stopping:
    """One signal: no more work, and ``grace`` seconds for what runs. A second one: stop now. A third one: kill.

    ``clock`` gives monotonic seconds.
    """

    def __init__(self, signals: Signals, grace: float, clock: Callable[[], float]) -> None:
        self._signals, self._grace, self._clock = signals, grace, clock
        self._since: float | None = None
        self._told: float | None = None

    @property
    def begun(self) -> bool:
        """True when the runner is to end."""
        return self._since is not None

    def heed(self, experiments: Sequence[Running]) -> None:
        """Do with the experiments what the signals ask for."""
        if not self._signals.stops:
            return
        now = self._clock()
        if self._since is None:
            self._since = now
            self._say(len(experiments))
        hurried = self._signals.stops > 1
        if self._told is None and (hurried or now >= self._since + self._grace):
            self._told = now
            for running in experiments:
                running.log.info("%s is told to stop", running)
                running.stop()
        patience = _HURRIED_PATIENCE if hurried else STOP_PATIENCE
        if self._told is not None and (self._signals.stops > 2 or now >= self._told + patience):
            for running in experiments:
                running.child.kill()

    def _say(self, running: int) -> None:
        if running:
            grace = format_duration(self._grace)
            log.info("stopping: what runs (%d) has %s to finish; a second signal stops it now", running, grace)
        else:
            log.info("stopping: nothing is running")
