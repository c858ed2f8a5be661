"""What an experiment's processes use while they run, and the end of those that use too much, or nothing any more."""

from __future__ import annotations

import math
import os
import resource
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from runner.attempt.watch import Watch
from runner.errors import ExperimentError, MachineError, RunnerError
from runner.loop import Loop
from runner.machine import procfs
from runner.machine.delegated import Group
from runner.message.request import Resources
from runner.units import format_duration, format_size

# Measurements follow each other after so many seconds, and take at most this share of the time.
_PACE = 0.5
_SHARE = 0.1
# Processes that together use less of a core than this share are waiting for something.
_IDLE = 0.02
# How long hung processes may take to write down where they hang, and the pace of looking whether one has. In seconds.
_DUMP = 10.0
_DUMP_PACE = 0.02
# An experiment that leaves less than this of what it asked for unused has asked for about the right amount. In bytes.
_NOT_WORTH_A_WORD = 256 * 1024 * 1024
_HEADROOM = 1.2
# A shorter one says nothing of how many cores it needs. In seconds.
_LONG_ENOUGH = 60.0


@dataclass(frozen=True)
class Limits:
    """What a tree of processes may use: bytes of memory, processes, seconds of doing nothing; 0 for any."""

    memory: int = 0
    processes: int = 0
    hang: float = 0.0


class Usage:
    """Measures all processes below this one, from ``begin`` to ``end``, and tells the watch when they have to go.

    ``fed`` tells how much output there was so far. Where they have a ``group``, the kernel counts their memory, and
    ends those that want more than their limit. The figures: most bytes of ``memory`` and ``processes`` at a time,
    seconds of ``cpu`` and of the clock; ``outgrown`` is the kernel's reason, once they are gone.
    """

    def __init__(
        self,
        asked: Resources,
        limits: Limits,
        group: Group | None = None,
        *,
        loop: Loop,
        watch: Watch,
        fed: Callable[[], int],
    ) -> None:
        self._asked, self._limits, self._group = asked, limits, group
        self._loop, self._watch, self._fed = loop, watch, fed
        self._over, self._starved = True, False
        self.outgrown: ExperimentError | None = None
        self._hung: RunnerError | None = None
        self._dumping = 0
        self.memory, self.processes, self.cpu, self.seconds = 0, 0, 0.0, 0.0

    def begin(self) -> None:
        """The experiment's process has just been started."""
        self._over = False
        self._began = self._busy_at = self._looked_at = time.monotonic()
        self._last = (0, 0.0)
        self._before = resource.getrusage(resource.RUSAGE_CHILDREN)
        self._killed_before = procfs.killed_for_memory()
        self._look()

    def end(self) -> None:
        """The experiment is over, its processes are gone."""
        if self._over and not self._hung:
            return
        self._over = True
        self.seconds = time.monotonic() - self._began
        after, before = resource.getrusage(resource.RUSAGE_CHILDREN), self._before
        self.cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        if after.ru_maxrss > before.ru_maxrss:  # the largest child that there ever was
            self.memory = max(self.memory, after.ru_maxrss * 1024)
        if self._group:
            self._end_group(self._group)
        else:
            self._starved = procfs.killed_for_memory() > self._killed_before

    def _end_group(self, group: Group) -> None:
        """Learn from the kernel how much memory it was, and whether that was too much."""
        peak = group.peak() or self._limits.memory
        self._starved = group.starved()
        if group.outgrown():
            self.memory = peak
            self.outgrown = _too_much(f"more than {format_size(self._limits.memory)}", self._limits.memory)
        elif peak:  # which pages of files are part of, so it is no more than an upper bound
            self.memory = min(self.memory, peak)

    def blame(self, status: int) -> RunnerError | None:
        """Return why the experiment's process ended with a status, where that is known here; negative for a signal."""
        if self._hung:
            return self._hung
        if status != -signal.SIGKILL or not self._starved:
            return None
        says = f"this machine ran out of memory, of which it used {format_size(self.memory)}"
        if not self._asked.ram:
            return ExperimentError(f"{says} and asked for none: set resources_needed.ram", verdict="oom")
        says += f" and asked for {format_size(self._asked.ram)}"
        if self.memory > self._asked.ram:
            return ExperimentError(f"{says}: raise resources_needed.ram", verdict="oom")
        return MachineError(says, verdict="oom")

    def described(self, disk: int, gpu_memory: int) -> dict[str, object]:
        """Return what was asked for and what was used, as the metadata tells it; ``disk`` and GPUs' memory in bytes."""
        asked = self._asked
        gpus = asked.gpus or asked.gpu_count
        return {
            "asked": {
                **{"cpus": asked.cpus, "gpus": asked.gpus, "ram": asked.ram, "hdd": asked.hdd},
                **({"gpuMem": asked.gpu_mem} if gpus else {}),
            },
            "used": {
                "seconds": round(self.seconds, 3),
                "cpu_seconds": round(self.cpu, 3),
                "ram": self.memory,
                "hdd": disk,
                "processes": self.processes,
                **({"gpuMem": gpu_memory} if gpus else {}),
            },
            "suggestion": suggestion(asked, self.seconds, self.cpu, self.memory, disk),
        }

    def _look(self) -> None:
        if self._over:
            return
        begun = time.monotonic()
        pids = procfs.tree(os.getpid())
        use = procfs.use(pids)
        self.processes = max(self.processes, use.processes)
        memory = self._group.memory() if self._group else self._resident(pids, use)
        self.memory = max(self.memory, memory, use.largest)
        self._check(memory, use.processes)
        self._check_life(pids, use.cpu)
        took = time.monotonic() - begun
        self._loop.call_later(max(_PACE, took / _SHARE), self._look)

    def _resident(self, pids: list[int], use: procfs.Use) -> int:
        """Return the bytes of memory of processes; what they share counts once where that may make a difference."""
        if use.memory > self.memory and use.processes > 1:
            return procfs.proportional(pids) or use.memory
        return use.memory

    def _check(self, memory: int, processes: int) -> None:
        if self._limits.memory and memory > self._limits.memory:
            self._watch.end(_too_much(format_size(memory), self._limits.memory))
        if self._limits.processes and processes > self._limits.processes:
            self._watch.end(
                ExperimentError(
                    f"it has {processes} processes, and --max-processes allows {self._limits.processes}",
                    verdict="script",
                )
            )

    def _check_life(self, pids: list[int], cpu: float) -> None:
        """End what has neither used a processor nor written anything for too long."""
        now, before = time.monotonic(), self._last
        self._last = (self._fed(), cpu)
        if self._last[0] != before[0] or cpu - before[1] > _IDLE * (now - self._looked_at) or cpu < before[1]:
            self._busy_at = now
        self._looked_at = now
        if self._limits.hang and now - self._busy_at >= self._limits.hang:
            self._give_up(pids)

    def _give_up(self, pids: list[int]) -> None:
        """Have Python processes write down where they are (faulthandler does, see environment.py), and end them all.

        They are stopped first, or one would go on when another dies for which it waits.
        """
        self._over = True
        waited = format_duration(self._limits.hang)
        hung = ExperimentError(
            f"it hung: for {waited} it used no processor and wrote nothing (--hang-timeout)", verdict="timeout"
        )
        self._hung = hung
        pythons = [pid for pid in pids if procfs.is_python(pid)]
        for pid in pythons:
            _signal(pid, signal.SIGSTOP)
        self._dump(pythons, hung, time.monotonic() + _DUMP)

    def _dump(self, pids: list[int], hung: RunnerError, end: float) -> None:
        """Let one process after the other write and die, children before parents, for the first one takes all along."""
        while pids and not procfs.is_python(pids[-1]):  # it is dead
            pids = pids[:-1]
        if not pids or time.monotonic() >= end:
            self._watch.end(hung)
            return
        if self._dumping != pids[-1]:
            self._dumping = pids[-1]
            _signal(self._dumping, signal.SIGABRT)
            _signal(self._dumping, signal.SIGCONT)
        self._loop.call_later(_DUMP_PACE, lambda: self._dump(pids, hung, end))


def _too_much(used: str, asked: int) -> ExperimentError:
    sentence = f"it uses {used} of memory, but asked for {format_size(asked)}: raise resources_needed.ram"
    return ExperimentError(sentence, verdict="oom")


def _signal(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def suggestion(asked: Resources, seconds: float, cpu: float, memory: int, disk: int) -> str:
    """Say what the experiment could have asked for, "" when it asked for about the right amount."""
    fitting = []
    if cores := math.ceil(cpu / seconds * _HEADROOM) if seconds >= _LONG_ENOUGH else 0:
        fitting += [f"cpus {cores}"] if cores < asked.cpus else []
    for name, given, used in (("ram", asked.ram, memory), ("hdd", asked.hdd, disk)):
        enough = round(used * _HEADROOM)
        if given - enough > max(_NOT_WORTH_A_WORD, enough):
            fitting.append(f"{name} {format_size(enough)}")
    return f"{' and '.join(fitting)} would have been enough" if fitting else ""
