"""Decompressing a stream whatever it is compressed with, in pieces of limited size."""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable
from functools import partial
from typing import Any, cast

from runner.storage.base import CHUNK, Reader

# Memory that xz may take, in bytes: archives say how much they want, up to 4 GiB. The best of its levels wants 65 MiB.
_MOST_OF_XZ = 128 * 1024 * 1024

DAMAGE = (zlib.error, lzma.LZMAError, EOFError, OSError)
"""What reading raises when it turns out that the data is damaged; bz2's errors are OSErrors."""


def decompressed(stream: Reader) -> Reader:
    """Find out from the first bytes what a stream is compressed with, and return it as it was before.

    What is read of that raises one of DAMAGE, besides what the stream itself raises.
    """
    head = _head(stream, 6)
    replayed = _Replayed(head, stream)
    for magic, make in _MAGIC.items():
        if head.startswith(magic):
            return _Decompressed(replayed, make)
    return replayed


def _head(stream: Reader, size: int) -> bytes:
    head = b""
    while len(head) < size and (data := stream.read(size - len(head))):
        head += data
    return head


class _Replayed:
    """A stream whose first bytes have been read already."""

    def __init__(self, head: bytes, stream: Reader) -> None:
        self._head, self._stream = head, stream

    def read(self, size: int = -1, /) -> bytes:
        if self._head:
            data, self._head = self._head[:size], self._head[size:]
            return data
        return self._stream.read(size)


class _Zlib:
    """zlib's decompressor with the manners of bz2's and lzma's: it keeps its unread input to itself."""

    def __init__(self) -> None:
        self._inner = zlib.decompressobj(16 + zlib.MAX_WBITS)

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data

    @property
    def needs_input(self) -> bool:
        return not self._inner.unconsumed_tail

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._inner.decompress(self._inner.unconsumed_tail + data, max_length)


_MAGIC: dict[bytes, Callable[[], Any]] = {
    b"\x1f\x8b": _Zlib,
    b"BZh": bz2.BZ2Decompressor,
    b"\xfd7zXZ\x00": partial(lzma.LZMADecompressor, memlimit=_MOST_OF_XZ),
}


class _Decompressed:
    """A stream decompressed in small pieces, so that a bomb meets its budget before it meets the memory."""

    def __init__(self, stream: Reader, make: Callable[[], Any]) -> None:
        self._stream, self._make = stream, make
        self._inner = make()

    def read(self, size: int = -1, /) -> bytes:
        """Return at most ``size`` bytes, and never more than a chunk, as tarfile's streams allow."""
        wanted = CHUNK if size < 0 else min(size, CHUNK)
        while True:
            if self._inner.eof:
                rest = self._inner.unused_data or self._stream.read(CHUNK)
                if not rest.strip(b"\0"):
                    return b""  # the end, or the padding that some writers add
                self._inner = self._make()
            else:
                rest = self._stream.read(CHUNK) if self._inner.needs_input else b""
                if not rest and self._inner.needs_input:
                    raise EOFError("it ends in the middle")
            if data := self._inner.decompress(rest, wanted):
                return cast("bytes", data)
