"""The attempt's side of the event pipe: nothing that is told ever waits for the supervisor to read it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from runner import events
from runner.events import Event, Line
from runner.loop import Loop
from runner.secrets.masking import NONE

# In bytes: lines of output are left out while so much is unread. Other events are few.
_BACKLOG = 1024 * 1024
# How many lines a second are told in the long run, and at most at once.
_RATE = 500.0
_BURST = 2000.0
# In characters; reports have no longer ones.
_LONGEST = 64 * 1024


class Teller:
    """Writes events to a pipe while the loop runs. ``clock`` gives monotonic seconds.

    ``secrets`` are masked in all that is told.
    """

    def __init__(self, fd: int, loop: Loop, clock: Callable[[], float] = time.monotonic) -> None:
        self._fd, self._loop, self._clock = fd, loop, clock
        self._unsent = bytearray()
        self._waiting = False
        self._allowance, self._counted = _BURST, clock()
        self._dropped = 0
        self.secrets = NONE
        os.set_blocking(fd, False)

    def tell(self, event: Event) -> None:
        """Send an event."""
        self._unsent += self.secrets.mask(events.to_line(event))
        self._send()

    def line(self, text: str, *, error: bool, document: bool) -> None:
        """Send a line of output; one line too many is only counted."""
        now = self._clock()
        self._allowance = min(_BURST, self._allowance + (now - self._counted) * _RATE)
        self._counted = now
        if self._allowance < 1 or len(self._unsent) > _BACKLOG:
            self._dropped += 1
            return
        self._allowance -= 1
        self.tell(Line(text[:_LONGEST], error, document, self._dropped))
        self._dropped = 0

    def flush(self) -> None:
        """Wait until everything is sent; for the end, when there is nothing else to do."""
        os.set_blocking(self._fd, True)
        self._send()

    def _send(self) -> None:
        try:
            while self._unsent:
                del self._unsent[: os.write(self._fd, self._unsent[:65536])]
        except BlockingIOError:
            if not self._waiting:
                self._waiting = True
                self._loop.add_handler(self._fd, lambda *_: self._send(), self._loop.WRITE)
            return
        except BrokenPipeError:
            self._unsent.clear()  # the supervisor is gone: the watch notices
        if self._waiting:
            self._waiting = False
            self._loop.remove_handler(self._fd)
