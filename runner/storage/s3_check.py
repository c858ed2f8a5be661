"""Whether what was received is what the store has: ETags are MD5s, of the object or of the MD5s of its parts.

The size of the parts has to be guessed. So a mismatch there is a reason to fetch the object again, and the same bytes
coming twice are believed.
"""

from __future__ import annotations

import hashlib
import re

from runner.storage.base import CHUNK, Anew, Reader

_MIB = 1024 * 1024
# Sizes of parts, in bytes, that clients use: Amazon's and ours, the smallest, and the next of ours.
_PART_SIZES = (8 * _MIB, 5 * _MIB, 16 * _MIB)
# MD5 is slower than networks: of larger objects that came in parts, in bytes, only the size is checked.
_MOST_IN_PARTS = 256 * _MIB

_ETAG = re.compile(r"([0-9a-f]{32})(?:-([0-9]{1,5}))?")


class Doubts:
    """What did not match its ETag, of one store."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, str], str] = {}

    def settle(self, key: str, etag: str, digest: str) -> None:
        """Raise Anew for a digest that is not the ETag; one of parts may be, if it is the same a second time."""
        if etag != digest and ("-" not in etag or self._seen.get((key, etag)) != digest):
            self._seen[key, etag] = digest
            raise Anew(f"{key!r} was damaged on its way: its content does not match its ETag")


def part_size(etag: str, size: int) -> int:
    """Return what an object's ETag is made of: MD5s of so many bytes each, or ``size``; 0 when that is not known."""
    found = _ETAG.fullmatch(etag)
    if not found or (found[2] and size > _MOST_IN_PARTS):
        return 0
    parts = int(found[2] or 1)
    if parts == 1:
        return max(size, 1)
    return next((each for each in _PART_SIZES if -(-size // each) == parts), 0)


class Checked:
    """An object's stream that ends only when it has matched the ETag. ``part`` is what ``part_size`` says, not 0."""

    def __init__(self, stream: Reader, key: str, etag: str, *, size: int, part: int, doubts: Doubts) -> None:
        self._stream, self._key, self._etag, self._doubts = stream, key, etag, doubts
        self._left, self._part = size, part
        self._digest = _md5()
        self._room = part
        self._digests: list[bytes] = []

    def read(self, size: int = -1, /) -> bytes:
        """See Reader."""
        if size < 0:
            return b"".join(iter(lambda: self.read(CHUNK), b""))
        data = self._stream.read(size)
        self._hash(memoryview(data))
        self._left -= len(data)
        if data and not self._left:
            self._doubts.settle(self._key, self._etag, self._made())
        return data

    def _hash(self, data: memoryview) -> None:
        while data:
            if not self._room:
                self._digests.append(self._digest.digest())
                self._digest, self._room = _md5(), self._part
            taken = data[: self._room]
            self._digest.update(taken)
            self._room -= len(taken)
            data = data[len(taken) :]

    def _made(self) -> str:
        if "-" not in self._etag:
            return self._digest.hexdigest()
        digests = [*self._digests, self._digest.digest()]
        return f"{_md5(b''.join(digests)).hexdigest()}-{len(digests)}"


def _md5(data: bytes = b"") -> hashlib._Hash:
    return hashlib.md5(data, usedforsecurity=False)
