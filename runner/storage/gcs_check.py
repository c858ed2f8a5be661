"""Whether an object is what Google Cloud Storage says that it has."""

from __future__ import annotations

import hashlib
from base64 import b64encode
from collections.abc import Mapping
from functools import cache
from typing import Protocol

from runner.storage.base import Anew, Reader

# Bytes of the largest object whose CRC32C is looked at: half a second of Python's time.
_SUMMED = 4 * 1024 * 1024


class _Digest(Protocol):
    """A hash in the making."""

    def update(self, data: bytes, /) -> None:
        """Take some more."""

    def digest(self) -> bytes:
        """Return the hash of all so far."""


def checked(stream: Reader, headers: Mapping[str, str], size: int | None, key: str) -> Reader:
    """Return a stream that breaks at its end if it is not what the store says that it has.

    Composite objects have no MD5. The CRC32C of larger ones is not looked at: in Python it takes longer than their
    transfer. What is stored compressed and read otherwise has another hash than its bytes, and no size.
    """
    if size is None or headers.get("x-goog-stored-content-encoding", "identity") != "identity":
        return stream
    hashes = dict(pair.strip().split("=", 1) for pair in headers.get("x-goog-hash", "").split(",") if "=" in pair)
    if "md5" in hashes:
        return _Checked(stream, hashlib.md5(usedforsecurity=False), hashes["md5"], size, key)
    if "crc32c" in hashes and size <= _SUMMED:
        return _Checked(stream, _Crc32c(), hashes["crc32c"], size, key)
    return stream


class _Checked:
    """A stream whose hash has to be ``expected``, in Base64, when ``size`` bytes have passed."""

    def __init__(self, stream: Reader, digest: _Digest, expected: str, size: int, key: str) -> None:
        self._stream, self._digest, self._expected, self._left, self._key = stream, digest, expected, size, key

    def read(self, size: int = -1, /) -> bytes:
        data = self._stream.read(size)
        self._digest.update(data)
        self._left -= len(data)
        if data and not self._left and b64encode(self._digest.digest()).decode() != self._expected:
            raise Anew(f"{self._key!r} was damaged on its way: it has another hash than the store says")
        return data


class _Crc32c:
    """Castagnoli's CRC (RFC 3720, appendix B.4), which no part of Python's library knows."""

    def __init__(self) -> None:
        self._value = 0xFFFFFFFF

    def update(self, data: bytes, /) -> None:
        table, value = _crc32c_table(), self._value
        for byte in data:
            value = table[(value ^ byte) & 0xFF] ^ (value >> 8)
        self._value = value

    def digest(self) -> bytes:
        return (self._value ^ 0xFFFFFFFF).to_bytes(4, "big")


@cache
def _crc32c_table() -> tuple[int, ...]:
    return tuple(_remainder(byte) for byte in range(256))


def _remainder(value: int) -> int:
    for _ in range(8):
        value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return value
