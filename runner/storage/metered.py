"""Stores whose bytes are counted, of all content that comes and goes, tries that failed included."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from threading import Lock

from runner.storage.base import Reader, Store, Stored, Writer


class Meter:
    """Counts bytes by scheme. For any thread."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._counts: dict[str, tuple[int, int]] = {}

    def count(self, scheme: str, *, fetched: int = 0, stored: int = 0) -> None:
        """Count what has come, or gone."""
        with self._lock:
            before = self._counts.get(scheme, (0, 0))
            self._counts[scheme] = before[0] + fetched, before[1] + stored

    def taken(self) -> dict[str, tuple[int, int]]:
        """Return what was fetched and stored since the last call, by scheme."""
        with self._lock:
            counts, self._counts = self._counts, {}
        return counts


class Metered:
    """A Store that counts."""

    def __init__(self, store: Store, scheme: str, meter: Meter) -> None:
        self._store, self._scheme, self._meter = store, scheme, meter

    @contextmanager
    def open(self, key: str) -> Iterator[Stored]:
        """See Store."""
        with self._store.open(key) as stored:
            yield replace(stored, stream=_Reading(stored.stream, self._scheme, self._meter))

    def etag(self, key: str) -> str | None:
        """See Store."""
        return self._store.etag(key)

    @contextmanager
    def create(self, key: str) -> Iterator[Writer]:
        """See Store."""
        with self._store.create(key) as out:
            yield _Writing(out, self._scheme, self._meter)


class _Reading:
    def __init__(self, stream: Reader, scheme: str, meter: Meter) -> None:
        self._stream, self._scheme, self._meter = stream, scheme, meter

    def read(self, size: int = -1, /) -> bytes:
        data = self._stream.read(size)
        self._meter.count(self._scheme, fetched=len(data))
        return data


class _Writing:
    def __init__(self, out: Writer, scheme: str, meter: Meter) -> None:
        self._out, self._scheme, self._meter = out, scheme, meter

    def write(self, data: bytes, /) -> int:
        written = self._out.write(data)
        self._meter.count(self._scheme, stored=written)
        return written
