"""How much disk an attempt uses, while it runs, and whose doing a full disk is."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path

from runner.attempt.watch import Watch
from runner.attempt.worker import Worker
from runner.errors import ExperimentError, MachineError, RunnerError
from runner.loop import Loop
from runner.machine.disk import free
from runner.machine.hoard import LEFT_FREE
from runner.place import Place
from runner.units import format_size
from runner.walk import walk

# Measurements follow each other after so many seconds, first and at last, and take at most this share of the time.
_FIRST, _PACE = 1.0, 10.0
_SHARE = 0.05
# A disk with no more than this left counts as full: what failed to be written was larger. In bytes.
_FULL = 16 * 1024 * 1024
# Written at the start, and given up at the end: the last words find room also on a full disk. In bytes.
_BALLAST = 4 * 1024 * 1024


class DiskUse:
    """The disk that one attempt asked for (``asked`` bytes, 0 for any amount), and what it uses.

    ``tell`` is called with each measured use. Raises MachineError when the disk has no room for anything.
    """

    def __init__(self, place: Place, asked: int, *, loop: Loop, watch: Watch, tell: Callable[[int], None]) -> None:
        self._place, self._asked, self._loop, self._watch, self._tell = place, asked, loop, watch, tell
        self._worker = Worker(loop)  # that of the stores may be kept busy by them
        self._over, self._pace = False, _FIRST / 2
        self._most = 0
        self._ballast = place.scratch / "ballast"
        try:
            with self._ballast.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, _BALLAST)
        except OSError as error:
            raise MachineError(f"this machine's disk cannot be used: {error.strerror}") from error

    def watch(self) -> None:
        """Measure from now on, and end the attempt when it uses more than it asked for."""
        if not self._over:
            self._worker.call(self._timed, self._measured)

    def end(self) -> None:
        """The experiment is over; what is left to be written may use the room that was kept for it."""
        self._over = True
        with suppress(OSError):
            self._ballast.unlink()

    @property
    def most(self) -> int:
        """The most bytes that it was seen to use; measured now if it never was."""
        self._most = self._most or self._measure(lambda: True)
        return self._most

    def blame(self, error: RunnerError) -> RunnerError:
        """Return what an error of an attempt is when the disk is full: its own doing if it uses more than it asked for.

        Less than is left free at every start is nobody's fault.
        """
        if not isinstance(error, ExperimentError | MachineError) or free(self._place.root) > _FULL:
            return error
        used = self._measure(lambda: True)
        self.end()
        asked = format_size(self._asked)
        says = f"{error} (the disk is full, of which it uses {format_size(used)} and asked for {asked})"
        if used > max(self._asked, LEFT_FREE):
            return ExperimentError(f"{says}: raise resources_needed.hdd", verdict="disk")
        return MachineError(says, verdict="disk")

    def _timed(self) -> tuple[int, float]:
        begun = time.monotonic()
        return self._measure(lambda: not self._over), time.monotonic() - begun

    def _measure(self, going: Callable[[], bool]) -> int:
        ballast = _BALLAST if self._ballast.exists() else 0
        return max(0, disk_use(self._place.root, going) - ballast)

    def _measured(self, result: Future[tuple[int, float]]) -> None:
        if self._over:
            return
        used, took = result.result()
        self._most = max(self._most, used)
        self._tell(used)
        if self._asked and used > self._asked:
            self._watch.end(
                ExperimentError(
                    f"it uses {format_size(used)} of disk, but asked for {format_size(self._asked)}: "
                    "raise resources_needed.hdd",
                    verdict="disk",
                )
            )
        self._pace = min(_PACE, 2 * self._pace)
        self._loop.call_later(max(self._pace, took / _SHARE), self.watch)


def disk_use(directory: Path, going: Callable[[], bool] = lambda: True) -> int:
    """Return the bytes of all files below a directory, without the holes in them; what cannot be read is left out.

    It ends early when it is not ``going`` on any more.
    """
    total = 0
    for _, status in walk(directory, leaving_out=OSError):
        if not going():
            break
        if not stat.S_ISDIR(status.st_mode):
            total += min(status.st_size, status.st_blocks * 512) // max(1, status.st_nlink)
    return total
