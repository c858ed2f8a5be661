"""Reading the headers of tar archives by tarfile, with limits that it does not have: they come from strangers."""

from __future__ import annotations

import tarfile
from typing import IO, cast

from runner.artifacts.budget import Budget
from runner.storage.base import CHUNK, Reader

# Headers (long names, PAX records, maps of sparse files) have to be held in memory. tar pads an archive's end, too: to
# 10 KiB, and to 1 MiB at most by option. In bytes, with what is read ahead.
_MOST_UNSPENT = 2 * 1024 * 1024
# How often the end may be read: tarfile may look for what follows a header also where there is nothing more.
_MOST_ENDS = 100

DAMAGE = (tarfile.TarError, EOFError, ValueError, IndexError, OverflowError, RecursionError)
"""What reading a damaged archive raises: tarfile lets some of its own mistakes out."""


def opened(stream: Metered) -> tarfile.TarFile:
    """Return an archive whose members come one after the other, as the stream does; it raises one of DAMAGE."""
    return tarfile.TarFile(fileobj=cast("IO[bytes]", Forwards(stream)), tarinfo=Member)


# Files, directories, links, and the headers that tell more of what follows: most of all members.
_PLAIN_TYPES = frozenset((tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.XHDTYPE))

# Where its mode, size and time are in a header.
_NUMBERS = ((100, 108), (124, 136), (136, 148))

# Not in typeshed. The remaining kind, EOFHeaderError, is the end that every archive has to have.
_NO_HEADER = (
    tarfile.EmptyHeaderError,  # type: ignore[attr-defined]
    tarfile.TruncatedHeaderError,  # type: ignore[attr-defined]
    tarfile.InvalidHeaderError,  # type: ignore[attr-defined]
)


class Metered:
    """A stream and the budget for what it holds: it breaks off when much is read of which nothing is spent.

    Whatever makes tarfile read without an end (large or endless headers, zeros after the archive) stops here.
    """

    def __init__(self, stream: Reader, budget: Budget) -> None:
        self._stream, self._budget = stream, budget
        self._unspent = self._ends = 0

    def read(self, size: int = -1, /) -> bytes:
        """See Reader."""
        data = self._stream.read(size)
        self._unspent += len(data)
        if self._unspent > _MOST_UNSPENT:
            raise tarfile.ReadError(f"more than {_MOST_UNSPENT} bytes in a header or after the end")
        self._ends += not data
        if self._ends > _MOST_ENDS:
            raise EOFError("it ends in the middle")
        return data

    def spend(self, size: int) -> None:
        """See Budget."""
        self._unspent = 0
        self._budget.spend(size)


class Forwards:
    """A stream as tarfile wants it, with a position. tarfile's own copies all that it has read ahead at every read."""

    def __init__(self, stream: Reader) -> None:
        self._stream = stream
        self._ahead, self._start = b"", 0
        self._position = 0

    def tell(self) -> int:
        """Return how many bytes have been read or passed over."""
        return self._position

    def seek(self, position: int) -> None:
        """Pass over what lies before a position. Raises StreamError for one that was passed already, and EOFError."""
        if position < self._position:
            raise tarfile.StreamError("it would have to be read backwards")
        while self._position < position:
            if not self.piece(min(position - self._position, CHUNK)):
                raise EOFError("it ends in the middle")

    def read(self, size: int) -> bytes:
        """Return ``size`` bytes, fewer only at the end."""
        pieces: list[bytes] = []
        missing = size
        while missing > 0:
            if self._start == len(self._ahead):
                self._ahead, self._start = self._stream.read(CHUNK), 0
            if not self._ahead:
                break
            pieces.append(self._ahead[self._start : self._start + missing])
            self._start += len(pieces[-1])
            missing -= len(pieces[-1])
        data = b"".join(pieces)
        self._position += len(data)
        return data

    def piece(self, size: int) -> bytes:
        """Return what comes next, ``size`` bytes at most, without a copy if it can be."""
        if left := len(self._ahead) - self._start:
            return self.read(min(size, left))
        data = self._stream.read(size)
        self._position += len(data)
        return data


class Member(tarfile.TarInfo):
    """A member whose header is there: tarfile takes a damaged or missing one for the end of the archive."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> Member:
        """See TarInfo."""
        try:
            return super().fromtarfile(tar)
        except _NO_HEADER as error:
            raise tarfile.ReadError(f"no header where one has to be ({error})") from error

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Member:
        """Read a header as tarfile does, in a third of the time, but for owners and devices: nobody wants them."""
        try:
            return _plain(cls(), bytes(buf), encoding, errors)
        except ValueError:
            return super().frombuf(buf, encoding, errors)


def _plain(member: Member, header: bytes, encoding: str, errors: str) -> Member:
    """Fill a member in from its header. Raises ValueError for one that is damaged, or unusual in any way."""
    checksum = _number(header[148:156])
    if len(header) != tarfile.BLOCKSIZE or checksum != 256 + sum(header) - sum(header[148:156]):
        raise ValueError("it may be damaged")
    member.type = header[156:157]
    if member.type not in _PLAIN_TYPES or header[345]:  # where a long name goes on
        raise ValueError("it is unusual")
    member.mode, member.size, member.mtime = (_number(header[start:end]) for start, end in _NUMBERS)
    member.name = _text(header[:100]).decode(encoding, errors)
    member.linkname = _text(header[157:257]).decode(encoding, errors)
    if member.type == tarfile.DIRTYPE:
        member.name = member.name.rstrip("/")
    return member


def _text(field: bytes) -> bytes:
    return field.partition(b"\0")[0]


def _number(field: bytes) -> int:
    """Read an octal number; what starts with a sign or is written in another way is a ValueError."""
    digits = _text(field).strip(b" ") or b"0"
    if not digits.isdigit():
        raise ValueError("no octal number")
    return int(digits, 8)
