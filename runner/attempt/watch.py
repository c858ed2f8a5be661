"""What may end an attempt before its time, and the only way to wait in one."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from runner.errors import ExperimentError, RunnerError
from runner.lifecycle import Signals
from runner.loop import Loop
from runner.order import GpuState

# The longest single wait, in seconds: a limit is noticed this late at worst.
TICK = 1.0


class Stopped(RunnerError):
    """The supervisor wants the attempt to end, or one of its GPUs broke; the message will be given back."""


class Orphaned(RunnerError):
    """The supervisor is gone: the message is somebody else's by now, so nothing may be stored any more."""


class Cancelled(RunnerError):
    """The experimenter has stopped the experiment: there is to be no other attempt."""


class Watch:
    """Serves the loop while waiting, and raises what ends the attempt early.

    ``supervisor`` is the descriptor of the pipe from the supervisor; its end means that the supervisor is gone.
    ``read`` is what came from there already.
    """

    def __init__(self, loop: Loop, signals: Signals, supervisor: int, read: bytes = b"") -> None:
        self._loop, self._signals = loop, signals
        self._orphaned = False
        self._returning = False
        self._late: list[tuple[Callable[[], float], float, ExperimentError]] = []
        self._end: RunnerError | None = None
        self._partial = b""
        self._gpus: GpuState | None = None
        self.gpu_memory = 0
        """The most bytes of the GPUs' memory that the attempt's processes were seen to use."""
        loop.add_handler(signals.fd, lambda _fd, _events: signals.drain(), loop.READ)
        loop.add_handler(supervisor, self._supervisor_spoke, loop.READ)
        self._heed(read)

    def _heed(self, data: bytes) -> None:
        *lines, self._partial = (self._partial + data).split(b"\n")
        for line in lines:
            self._gpus_are(GpuState.from_line(line))

    def _supervisor_spoke(self, fd: int, _events: int) -> None:
        data = os.read(fd, 4096)
        self._heed(data)
        if not data:
            self._orphaned = True
            self._loop.remove_handler(fd)

    def _gpus_are(self, state: GpuState) -> None:
        self.gpu_memory = max(self.gpu_memory, state.memory)
        if state.fault is None:
            return
        self._gpus = state
        if state.fault:
            self.end(Stopped(f"{state.fault}, and that is no failure of the experiment's", verdict="gpu"))

    def limit(self, seconds: float, late: ExperimentError) -> None:
        """Set for how long the experiment may go on from now, whatever clocks are set to, and what is raised then."""
        self._late.append((time.monotonic, time.monotonic() + seconds, late))

    def expire(self, at: float, dead: ExperimentError) -> None:
        """Set when the experiment is to end at the latest, in seconds since 1970, and what is raised then."""
        self._late.append((time.time, at, dead))

    def cancel(self) -> None:
        """The experimenter wants the experiment to end."""
        self.end(Cancelled("the experimenter stopped it"))

    def end(self, why: RunnerError) -> None:
        """The attempt has to end, since ``why``; the first reason counts."""
        self._end = self._end or why

    def returning(self) -> None:
        """From now on only the supervisor's death is a reason not to go on."""
        self._returning = True

    def await_gpus(self, seconds: float) -> None:
        """Wait until the supervisor has said how the attempt's GPUs are, so long at most. Raises as ``serve`` does."""
        self._gpus, end = None, time.monotonic() + seconds
        while self._gpus is None and (left := end - time.monotonic()) > 0:
            self.serve(left)

    def check(self) -> None:
        """Raise what ends the attempt, if there is something."""
        self.serve(0)

    def pause(self, seconds: float) -> None:
        """Wait so long. Raises as ``serve`` does."""
        end = time.monotonic() + seconds
        self.serve(seconds)
        while (left := end - time.monotonic()) > 0:
            self.serve(left)

    def serve(self, seconds: float = TICK) -> None:
        """Wait until something happens, that long at most.

        Raises Orphaned, Stopped, what ``end`` was told, or what ``limit`` and ``expire`` were told when the time is up.
        """
        self._loop.run_once(min(seconds, TICK))
        if self._orphaned:
            raise Orphaned("the supervisor is gone")
        if self._returning:
            return
        if self._signals.stops:
            raise Stopped("the runner was told to stop")
        if self._end:
            raise self._end
        for clock, end, late in self._late:
            if clock() >= end:
                raise late
