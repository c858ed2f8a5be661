"""Signals and limits: when a process is to stop."""

from __future__ import annotations

import signal
import socket
from types import FrameType

from runner.units import format_duration

# SIGHUP comes when the terminal is closed; nohup has it ignored, and so it stays.
_WATCHED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Signals:
    """Records stop signals and wakes a selector on them and on the death of children; acting is the loop's work.

    A context manager, for the main thread only: it puts the former handlers back. ``fd`` becomes readable with every
    signal; call ``drain`` when it does.
    """

    def __init__(self) -> None:
        self.stops = 0
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)

    @property
    def fd(self) -> int:
        """The wake-up descriptor, for a selector."""
        return self._reader.fileno()

    def drain(self) -> None:
        """Empty the wake-up descriptor."""
        try:
            while self._reader.recv(4096):
                pass
        except BlockingIOError:
            return

    def _record(self, number: int, _frame: FrameType | None) -> None:
        self.stops += 1

    def __enter__(self) -> Signals:
        wanted = [each for each in _WATCHED if each != signal.SIGHUP or signal.getsignal(each) != signal.SIG_IGN]
        self._former = {number: signal.signal(number, self._record) for number in wanted}
        # A handler must exist for SIGCHLD to reach the wake-up descriptor.
        self._former[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, lambda *_: None)
        self._former_fd = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(self._former_fd)
        for number, handler in self._former.items():
            signal.signal(number, handler)
        self._reader.close()
        self._writer.close()


class Limits:
    """The operator's limits, 0 for none: a number of attempts, a time without work, a time in all.

    Times are in seconds, ``now`` is monotonic. ``started`` counts the attempts.
    """

    def __init__(self, *, tasks: int, idle: float, interval: float, now: float) -> None:
        self._tasks, self._idle, self._interval = tasks, idle, interval
        self._began = self._last_work = now
        self.started = 0

    def enough(self, now: float) -> str:
        """Return why no more work is to be taken, or "" while there may be more."""
        if self._tasks and self.started >= self._tasks:
            return f"--limit-tasks {self._tasks} is reached"
        if self._interval and now - self._began >= self._interval:
            return f"--limit-interval {format_duration(self._interval)} is over"
        return ""

    def reached(self, *, running: int, now: float) -> str:
        """Return why the runner is to end, or "" while it is not."""
        if running:
            self._last_work = now
            return ""
        if not self.enough(now) and self._idle and now - self._last_work >= self._idle:
            return f"there was no work for {format_duration(self._idle)} (--limit-idle-duration)"
        return self.enough(now)
