"""How far things are that take long: a line every ten seconds, or a bar where somebody is looking."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial

from runner.loop import Loop
from runner.storage.base import Reader, Store, Stored, Writer
from runner.units import format_duration, format_size

# How often a line is told, and how often a bar is drawn. In seconds.
_PACE, _FRAME = 10.0, 0.2
_CLEAR = "\r\x1b[K"
# In characters.
_BAR = 24


class Progress:
    """Tells of the transfers and the waiting of one attempt. What takes less than ten seconds is not told at all.

    ``tell`` is called in the loop with a sentence; ``bar`` is the descriptor of a terminal, None for no bars. ``clock``
    gives monotonic seconds. Transfers may be in any thread.
    """

    def __init__(
        self,
        loop: Loop,
        tell: Callable[[str], None],
        *,
        bar: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._loop, self._tell, self._bar, self._clock = loop, tell, bar, clock

    def watched(self, store: Store, what: str) -> Store:
        """Return a store whose transfers are told; ``what`` is being done with them: "fetching the workspace"."""
        return _Watched(store, partial(self._transfer, what))

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Tell while something is being done in the loop whose extent nobody knows."""
        began, over = self._clock(), False

        def again() -> None:
            if not over:
                self._tell(f"{what}: {format_duration(round(self._clock() - began))} so far")
                self._loop.call_later(_PACE, again)

        self._loop.call_later(_PACE, again)
        try:
            yield
        finally:
            over = True

    @contextmanager
    def _transfer(self, what: str, size: int | None) -> Iterator[Transfer]:
        transfer = Transfer(what, size, self._clock(), self._moved)
        try:
            yield transfer
        finally:
            if transfer.shown:
                self._draw(_CLEAR)

    def _moved(self, transfer: Transfer) -> None:
        """Bytes have come or gone, in whatever thread."""
        now = self._clock()
        if self._bar is not None and now >= transfer.drawn + _FRAME:
            transfer.drawn, transfer.shown = now, True
            self._draw(f"{_CLEAR}{transfer.bar(now)}")
        if now >= transfer.told + _PACE:
            transfer.told = now
            self._loop.add_callback(partial(self._tell, transfer.sentence(now)))

    def _draw(self, text: str) -> None:
        try:
            if self._bar is not None:
                os.write(self._bar, text.encode())
        except OSError:
            self._bar = None


@dataclass
class Transfer:
    """One object on its way; ``size`` is None when nobody knows it. Times are monotonic seconds."""

    what: str
    size: int | None
    began: float
    moved: Callable[[Transfer], None]
    done: int = 0
    drawn: float = 0.0
    told: float = 0.0
    shown: bool = False

    def __post_init__(self) -> None:
        self.told = self.drawn = self.began

    def add(self, count: int) -> None:
        """So many more bytes have come or gone."""
        self.done += count
        self.moved(self)

    def sentence(self, now: float) -> str:
        """Say how far it is."""
        return f"{self.what}: {self._extent(now)}"

    def bar(self, now: float) -> str:
        """Draw how far it is."""
        full = _BAR * min(self.done, self.size) // self.size if self.size else 0
        drawn = f"[{'#' * full}{' ' * (_BAR - full)}] " if self.size else ""
        return f"{self.what} {drawn}{self._extent(now)}"

    def _extent(self, now: float) -> str:
        speed = self.done / max(now - self.began, 0.001)
        rate = f"{format_size(int(speed))}/s"
        if not self.size:
            return f"{format_size(self.done)}, {rate}"
        left = format_duration(max(1, round(max(0, self.size - self.done) / max(speed, 1.0))))
        share = 100 * self.done // self.size
        return f"{format_size(self.done)} of {format_size(self.size)} ({share} %), {rate}, {left} left"


class _Watched:
    """A Store whose transfers are told. ``transfer`` begins one, of so many bytes."""

    def __init__(self, store: Store, transfer: Callable[[int | None], AbstractContextManager[Transfer]]) -> None:
        self._store, self._transfer = store, transfer

    @contextmanager
    def open(self, key: str) -> Iterator[Stored]:
        """See Store."""
        with self._store.open(key) as stored, self._transfer(stored.size) as transfer:
            yield replace(stored, stream=_Reading(stored.stream, transfer))

    def etag(self, key: str) -> str | None:
        """See Store."""
        return self._store.etag(key)

    @contextmanager
    def create(self, key: str) -> Iterator[Writer]:
        """See Store."""
        with self._store.create(key) as out, self._transfer(None) as transfer:
            yield _Writing(out, transfer)


@dataclass
class _Reading:
    stream: Reader
    transfer: Transfer

    def read(self, size: int = -1, /) -> bytes:
        data = self.stream.read(size)
        self.transfer.add(len(data))
        return data


@dataclass
class _Writing:
    out: Writer
    transfer: Transfer

    def write(self, data: bytes, /) -> int:
        written = self.out.write(data)
        self.transfer.add(written)
        return written
