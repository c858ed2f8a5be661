"""One object read over several connections at once, in order, and on from where a connection breaks."""

from __future__ import annotations

import mmap
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, ExitStack
from typing import Protocol

from runner.errors import RunnerError, Unavailable
from runner.retry import Patience
from runner.storage.base import CHUNK, Anew, Reader

# What is asked for at once of an object that is read over several connections, in bytes: each holds so much memory.
PART = 4 * 1024 * 1024
# A connection that gives so many bytes a second is enough. Those of S3 give some 80 MB/s: so many are used then.
_FAST = 250e6
_MOST = 8
# So often is it looked at whether it still does, in bytes: it may have been fast at first only.
_STRETCH = 16 * PART

# Seconds between two looks at whether the reader may go on waiting.
_LOOK = 0.25


class Opened(Reader, Protocol):
    """Bytes on their way."""

    def gather(self, size: int, /) -> bytes:
        """As ``read``, however long it takes: less than ``size`` comes only at the end, or where it breaks."""

    def abort(self) -> None:
        """Break off, from another thread: whoever waits in ``read`` gets an Unavailable."""


Fetch = Callable[[int, int], AbstractContextManager[Opened]]
"""Open the bytes from ``start`` to before ``end`` of one version of an object, in one try.

Raises Changed when that version is gone, Unavailable when another try may succeed, and anything else for good.
"""


class Changed(Anew):
    """The object was replaced while it was read."""


class Part:
    """The bytes from ``start`` to before ``end``: where they break off, the rest is fetched, while patience lasts.

    ``body``, if it is open already, has the first of them; it is somebody else's to close. Patience begins with the
    first break, and anew only with one before which PART more bytes have come.
    """

    def __init__(
        self,
        fetch: Fetch,
        bounds: tuple[int, int],
        *,
        patience: Patience,
        sleep: Callable[[float], None],
        body: Opened | None = None,
    ) -> None:
        self._fetch, (self._position, self._end) = fetch, bounds
        self._patience, self._sleep = patience, sleep
        self._delays, self._deadline, self._renewal = patience.delays(), 0.0, self._position
        self._body = body
        self._own = ExitStack()

    def read(self, size: int = -1, /) -> bytes:
        """See Reader."""
        if size < 0:
            return b"".join(iter(lambda: self.read(CHUNK), b""))
        return self._tried(lambda body, most: body.read(most), size)

    def gather(self, size: int, /) -> bytes:
        """See Opened. Where one connection has broken, others may, too: from there on, all that comes is kept."""
        return self._tried(lambda body, most: body.read(most) if self._deadline else body.gather(most), size)

    def _tried(self, read: Callable[[Opened, int], bytes], size: int) -> bytes:
        while self._position < self._end:
            try:
                if data := read(self._opened(), min(size, self._end - self._position)):
                    self._position += len(data)
                    return data
                raise Unavailable("an answer ended too early")
            except Changed:
                raise
            except Unavailable:
                self.close()
                if not self._rested():
                    raise
        return b""

    def close(self) -> None:
        """Close the connection that this part has opened, if any."""
        self._own.close()
        self._body = None

    def abort(self) -> None:
        """See Opened."""
        if body := self._body:
            body.abort()

    def _opened(self) -> Opened:
        if self._body is None:
            self._body = self._own.enter_context(self._fetch(self._position, self._end))
        return self._body

    def _rested(self) -> bool:
        """Wait before the next try; false when there is to be none."""
        now = time.monotonic()
        if self._position >= self._renewal:
            self._delays, self._deadline = self._patience.delays(), now + self._patience.total
            self._renewal = self._position + PART
        if now >= self._deadline:
            return False
        self._sleep(min(next(self._delays), self._deadline - now))
        return True


class Ranges:
    """An object in parts. Where one connection is slow, some parts are on their way while one is read.

    ``head`` is the object's first answer, of PART bytes at most; how fast it comes decides. ``pause`` is how the reader
    waits: it may raise. Threads live until it is closed.
    """

    def __init__(
        self, fetch: Fetch, head: Opened, size: int, *, patience: Patience, pause: Callable[[float], None]
    ) -> None:
        self._fetch, self._size, self._patience, self._pause = fetch, size, patience, pause
        self._direct = Part(fetch, (0, min(PART, size)), patience=patience, sleep=pause, body=head)
        self._next, self._looked, self._waited = 0, 0, 0.0
        self._pool: ThreadPoolExecutor | None = None
        self._closed = threading.Event()
        self._loading: set[Part] = set()
        self._parts: deque[Future[memoryview]] = deque()
        self._memory = self._loaded = memoryview(b"")

    def read(self, size: int = -1, /) -> bytes:
        """See Reader."""
        if size < 0:
            return b"".join(iter(lambda: self.read(CHUNK), b""))
        while not self._pool:
            begun = time.monotonic()
            data = self._direct.read(size)
            self._waited += time.monotonic() - begun
            self._next += len(data)
            if data or self._next == self._size:
                if self._next >= self._looked + _STRETCH:
                    self._go_on(ended=False)
                return data
            self._go_on(ended=True)
        return self._read_loaded(self._pool, size)

    def close(self) -> None:
        """Break off what is still on its way, and end all threads."""
        self._closed.set()
        self._direct.close()
        for part in list(self._loading):
            part.abort()
        if self._pool:
            self._pool.shutdown(cancel_futures=True)
        self._parts.clear()
        self._memory = self._loaded = memoryview(b"")

    def _go_on(self, *, ended: bool) -> None:
        """Choose how the rest comes: over one connection if the last bytes came fast, over many otherwise.

        ``ended``: all that the one connection was asked for is there.
        """
        left = self._size - self._next
        enough = self._next - self._looked >= _FAST * self._waited or left <= PART
        self._looked, self._waited = self._next, 0.0
        if enough and not ended:
            return
        self._direct.close()
        if enough:
            self._direct = Part(self._fetch, (self._next, self._size), patience=self._patience, sleep=self._pause)
        else:
            # Not from the heap: each thread would have one of its own, which keeps what it has ever needed.
            self._memory = memoryview(mmap.mmap(-1, (_MOST + 1) * PART, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
            self._pool = ThreadPoolExecutor(_MOST, "range")
            self._ask_ahead(self._pool)

    def _ask_ahead(self, pool: ThreadPoolExecutor) -> None:
        while self._next < self._size and len(self._parts) < _MOST:
            bounds = self._next, min(self._next + PART, self._size)
            self._parts.append(pool.submit(self._load, bounds, self._room(*bounds)))
            self._next = bounds[1]

    def _room(self, start: int, end: int) -> memoryview:
        """Return where in memory a part goes: parts take turns, those on their way and the one that is read."""
        place = start // PART % (_MOST + 1) * PART
        return self._memory[place : place + end - start]

    def _read_loaded(self, pool: ThreadPoolExecutor, size: int) -> bytes:
        if not self._loaded and self._parts:
            self._loaded = self._await(self._parts.popleft())
            self._ask_ahead(pool)
        data, self._loaded = bytes(self._loaded[:size]), self._loaded[size:]
        return data

    def _await(self, part: Future[memoryview]) -> memoryview:
        while not wait([part], _LOOK).done:
            self._pause(0)
        return part.result()

    def _load(self, bounds: tuple[int, int], room: memoryview) -> memoryview:
        """Fetch a part into its place in memory, in a thread of its own; return that place."""
        part = Part(self._fetch, bounds, patience=self._patience, sleep=self._sleep)
        self._loading.add(part)
        try:
            filled = 0
            while data := part.gather(CHUNK):
                room[filled : filled + len(data)] = data
                filled += len(data)
                self._sleep(0)
            return room
        finally:
            self._loading.discard(part)
            part.close()

    def _sleep(self, seconds: float) -> None:
        if self._closed.wait(seconds):
            raise RunnerError("nobody wants it any more")
