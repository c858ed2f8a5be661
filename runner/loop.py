"""One selector for a whole process: descriptors, timers, and calls from other threads.

It has the methods that pika's ``AbstractSelectorIOLoop`` names, so that pika's connection can run as a guest in it,
but does not need pika: attempts use it too.
"""

from __future__ import annotations

import heapq
import itertools
import selectors
import socket
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

Handler = Callable[[int, int], None]
"""Called with the descriptor and a combination of READ, WRITE and ERROR."""


@dataclass(order=True)
class Timer:
    """A call that is due at a time, in the clock's seconds; ``call`` is None once it has been called or removed."""

    due: float
    order: int
    call: Callable[[], object] | None = field(compare=False)


class Loop:
    """A selector with timers. All methods but ``add_callback`` are for the thread that runs it.

    ``clock`` gives monotonic seconds.
    """

    READ = selectors.EVENT_READ
    WRITE = selectors.EVENT_WRITE
    ERROR = 4
    """Asked for by pika; the selector reports errors as readable and writable, so it is never reported by itself."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._selector = selectors.DefaultSelector()
        self._timers: list[Timer] = []
        self._order = itertools.count()
        self._callbacks: deque[Callable[[], object]] = deque()
        self._waker, self._awake = socket.socketpair()
        self._waker.setblocking(False)
        self._awake.setblocking(False)
        self.add_handler(self._awake.fileno(), self._woken, self.READ)

    def run_once(self, timeout: float) -> None:
        """Wait until something happens, ``timeout`` seconds at most, and serve all that did.

        What a handler raises comes out here, after which the loop can go on.
        """
        for key, events in self._selector.select(self._patience(timeout)):
            # An earlier handler of this round may have removed this one, or put another in its place.
            handler = self._handler(key.fd)
            if handler is not None and handler is key.data:
                handler(key.fd, events)
        self._serve_callbacks()
        self._serve_timers()

    def _patience(self, timeout: float) -> float:
        if self._callbacks:
            return 0.0
        if self._timers:
            timeout = min(timeout, self._timers[0].due - self._clock())
        return max(0.0, timeout)

    def _handler(self, fd: int) -> Handler | None:
        key = self._selector.get_map().get(fd)
        return cast("Handler", key.data) if key else None

    def _serve_callbacks(self) -> None:
        """Call what was there at the beginning: one that adds itself again must not keep the rest waiting."""
        for _ in range(len(self._callbacks)):
            self._callbacks.popleft()()

    def _serve_timers(self) -> None:
        now = self._clock()
        while self._timers and self._timers[0].due <= now:
            timer = heapq.heappop(self._timers)
            if timer.call:
                call, timer.call = timer.call, None
                call()

    # Timers and callbacks

    def call_later(self, delay: float, callback: Callable[[], object]) -> Timer:
        """Call something once, after ``delay`` seconds; return what ``remove_timeout`` takes."""
        timer = Timer(self._clock() + delay, next(self._order), callback)
        heapq.heappush(self._timers, timer)
        return timer

    def remove_timeout(self, timeout_handle: Timer) -> None:
        """Forget a timer; one that has been called already is no error."""
        timeout_handle.call = None

    def add_callback(self, callback: Callable[[], object]) -> None:
        """Call something in the loop's next round. May be called from any thread."""
        self._callbacks.append(callback)
        try:
            self._waker.send(b"\0")
        except (BlockingIOError, OSError):
            return  # it is awake, or closed

    def _woken(self, fd: int, _events: int) -> None:
        try:
            while self._awake.recv(4096):
                pass
        except BlockingIOError:
            return

    # Descriptors

    def add_handler(self, fd: int, handler: Handler, events: int) -> None:
        """Call ``handler`` whenever ``fd`` is ready for ``events``."""
        self._selector.register(fd, events & (self.READ | self.WRITE), handler)

    def update_handler(self, fd: int, events: int) -> None:
        """Change what a descriptor is watched for. Raises KeyError when it is not watched."""
        self._selector.modify(fd, events & (self.READ | self.WRITE), self._selector.get_key(fd).data)

    def remove_handler(self, fd: int) -> None:
        """Watch a descriptor no more; one that is not watched is no error."""
        try:
            self._selector.unregister(fd)
        except (KeyError, ValueError):
            return

    # For pika, which may want to run and stop a loop of its own: ours belongs to the process.

    def start(self) -> None:
        """Never called: whoever owns the loop calls ``run_once``."""
        raise RuntimeError("the loop is run by its owner")

    def stop(self) -> None:
        """See ``start``."""
        raise RuntimeError("the loop is run by its owner")

    def close(self) -> None:
        """Forget everything."""
        self._selector.close()
        self._waker.close()
        self._awake.close()
