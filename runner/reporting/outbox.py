"""Messages on their way out: a few in memory, more on disk; when that is not enough, the oldest are dropped."""

from __future__ import annotations

import logging
import struct
import tempfile
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

log = logging.getLogger(__name__)

# In bytes: what waits in memory, how large a piece of the spool is, and the whole spool.
_MEMORY = 1024 * 1024
_SEGMENT = 4 * 1024 * 1024
_SPOOL = 64 * 1024 * 1024
# So many are sent at once before the loop has its turn again.
_BURST = 100
_LENGTH = struct.Struct(">I")


class Outbox:
    """The messages for one queue, in order; ``send`` returns False when it takes none just now.

    ``spool`` is an existing directory; what is in it goes with this process. The sizes are in bytes.
    """

    def __init__(
        self,
        queue: str,
        send: Callable[[bytes], bool],
        spool: Path,
        *,
        memory: int = _MEMORY,
        segment: int = _SEGMENT,
        limit: int = _SPOOL,
    ) -> None:
        self._queue, self._send, self._spool = queue, send, spool
        self._memory, self._segment, self._limit = memory, segment, limit
        self._waiting: deque[bytes] = deque()
        self._bytes = 0
        self._segments: deque[_Segment] = deque()
        self.dropped = 0

    def put(self, body: bytes) -> None:
        """Add a message; this takes no longer when the server is away."""
        if not self._segments and self._bytes + len(body) <= self._memory:
            self._waiting.append(body)
            self._bytes += len(body)
            return
        try:
            self._spill(body)
        except OSError as error:
            if not self.dropped:
                log.warning("reports of queue %s cannot be kept: %s", self._queue, error.strerror)
            self.dropped += 1

    def pump(self) -> bool:
        """Send what the server takes; return whether it would take more at once."""
        for _ in range(_BURST):
            if not self._waiting and self._segments:
                self._reload()
            if not self._waiting:
                self._drained()
                return False
            if not self._send(self._waiting[0]):
                return False
            self._bytes -= len(self._waiting.popleft())
        return True

    def _spill(self, body: bytes) -> None:
        if not self._segments or self._segments[-1].size >= self._segment:
            while self._segments and sum(each.size for each in self._segments) + self._segment > self._limit:
                self._drop_oldest()
            self._segments.append(_Segment(self._spool))
        self._segments[-1].append(body)

    def _drop_oldest(self) -> None:
        if not self.dropped:
            log.warning(
                "reports of queue %s are dropped, the oldest first: its broker has been away for long", self._queue
            )
        # Those in memory are the oldest of all.
        self.dropped += len(self._waiting) + self._segments[0].count
        self._waiting.clear()
        self._bytes = 0
        self._segments.popleft().close()

    def _reload(self) -> None:
        segment = self._segments.popleft()
        try:
            self._waiting.extend(segment.read())
            self._bytes = segment.size
        except OSError as error:
            log.warning("%d reports of queue %s cannot be read back: %s", segment.count, self._queue, error.strerror)
            self.dropped += segment.count
        segment.close()

    def _drained(self) -> None:
        if self.dropped:
            log.warning("%d reports of queue %s were dropped; it works again", self.dropped, self._queue)
            self.dropped = 0

    def close(self) -> None:
        """Drop what is left."""
        while self._segments:
            self._segments.popleft().close()


class _Segment:
    """A file of messages, which has no name, so that nothing is left of it whatever becomes of this process."""

    def __init__(self, directory: Path) -> None:
        # Without a buffer: what does not fit on a full disk is known at once, and is not in the way of what follows.
        self._file = tempfile.TemporaryFile(dir=directory, buffering=0)  # noqa: SIM115 -- closed by close
        self._end = 0
        self.size = 0
        self.count = 0

    def append(self, body: bytes) -> None:
        """Add one, whole or not at all. Raises OSError."""
        self._file.seek(self._end)
        left = memoryview(_LENGTH.pack(len(body)) + body)
        while left:
            left = left[self._file.write(left) :]
        self._end = self._file.tell()
        self.size += len(body)
        self.count += 1

    def read(self) -> list[bytes]:
        """Return them all. Raises OSError."""
        self._file.seek(0)
        return [self._file.read(*_LENGTH.unpack(self._file.read(_LENGTH.size))) for _ in range(self.count)]

    def close(self) -> None:
        """Remove the file."""
        with suppress(OSError):
            self._file.close()
