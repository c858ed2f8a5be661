"""Unpacking tar archives while they stream, whatever is in them."""

from __future__ import annotations

import bz2
import lzma
import os
import stat
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, cast

from runner.archive import Budget
from runner.errors import ExperimentError, MachineError, is_machines_own
from runner.storage.base import CHUNK, Reader

_BLOCK = 512
_MOST_MEMBERS = 1_000_000
_DEEPEST = 256
# What a header may say in extra records (long names, PAX), which have to be held in memory. In bytes.
_LARGEST_HEADER = 1024 * 1024
_HEADERS = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)


def unpack(stream: Reader, directory: Path, budget: Budget) -> None:
    """Unpack an archive into a directory, which should be empty.

    What it is compressed with is found out from its content. Owners and special mode bits are dropped. Nothing outside
    of the directory is touched, whatever the archive says. The stream is read to its end. Raises ExperimentError for
    what is refused or corrupt, or what goes over the budget; errors of the stream pass through.
    """
    plain = _decompressed(stream)
    try:
        with tarfile.open(fileobj=cast("IO[bytes]", plain), mode="r|", tarinfo=_Member, bufsize=CHUNK) as tar:
            _unpack_members(tar, directory, budget)
        for rest in (plain, stream):
            while rest.read(CHUNK):
                pass
    except (tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, OSError, UnicodeError) as error:
        if isinstance(error, OSError) and is_machines_own(error):
            raise MachineError(f"this machine cannot unpack it: {error.strerror}") from error
        raise ExperimentError(f"the archive cannot be unpacked, it is damaged or is none: {error}") from error


class _Member(tarfile.TarInfo):
    """A header that does not let an archive fill the memory."""

    def _proc_member(self, tar: tarfile.TarFile) -> Any:
        if self.type in _HEADERS and self.size > _LARGEST_HEADER:
            raise tarfile.ReadError(f"a header of {self.size} bytes")
        return super()._proc_member(tar)  # type: ignore[misc] # not in typeshed; the documented way to subclass


def _unpack_members(tar: tarfile.TarFile, directory: Path, budget: Budget) -> None:
    for number, member in enumerate(tar):
        if number >= _MOST_MEMBERS:
            raise ExperimentError(f"the archive has more than {_MOST_MEMBERS} members")
        budget.spend(_BLOCK)
        path = directory.joinpath(*_parts(member.name, member))
        if path == directory:
            continue
        _make_parents(path, directory, member)
        _kind(member)(tar, member, path, directory, budget)
        tar.members = []  # type: ignore[attr-defined] # a stream's members are never asked for again


_Unpacker = Callable[[tarfile.TarFile, tarfile.TarInfo, Path, Path, Budget], None]


def _kind(member: tarfile.TarInfo) -> _Unpacker:
    if member.isdir():
        return _unpack_directory
    if member.issym():
        return _unpack_symlink
    if member.islnk():
        return _unpack_hard_link
    if member.isreg():
        return _unpack_file
    raise _refused(member, "is a device or another special file")


def _refused(member: tarfile.TarInfo, why: str) -> ExperimentError:
    return ExperimentError(f"the archive is refused, because its member {member.name[:200]!r} {why}")


def _parts(name: str, member: tarfile.TarInfo) -> list[str]:
    """Split a path inside the archive; refuse one that leads out of it."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ".." in parts or "\0" in name:
        raise _refused(member, "lies outside of its directory")
    if len(parts) > _DEEPEST:
        raise _refused(member, f"lies more than {_DEEPEST} directories deep")
    return parts


def _make_parents(path: Path, directory: Path, member: tarfile.TarInfo) -> None:
    """Make the directories above a member; never go through a link that the archive has made."""
    missing = []
    for parent in path.parents:
        if parent == directory:
            break
        mode = _mode(parent)
        if mode and not stat.S_ISDIR(mode):
            raise _refused(member, "lies below something that is no directory")
        if not mode:
            missing.append(parent)
    for parent in reversed(missing):
        parent.mkdir()


def _mode(path: Path) -> int:
    """Return the mode of what is there, 0 for nothing; links are not followed."""
    try:
        return path.lstat().st_mode
    except FileNotFoundError:
        return 0


def _clear(path: Path, member: tarfile.TarInfo) -> None:
    """Make way for a member that comes again, as a later one of the same name replaces the former."""
    mode = _mode(path)
    if stat.S_ISDIR(mode):
        raise _refused(member, "would replace a directory")
    if mode:
        path.unlink()


def _unpack_directory(_tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path, _root: Path, _budget: Budget) -> None:
    mode = _mode(path)
    if mode and not stat.S_ISDIR(mode):
        raise _refused(member, "would replace a file by a directory")
    path.mkdir(exist_ok=True)
    path.chmod(member.mode & 0o777 | 0o700)


def _unpack_file(tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path, _root: Path, budget: Budget) -> None:
    _clear(path, member)
    content = tar.extractfile(member)
    with path.open("xb") as file:
        while content and (data := content.read(CHUNK)):
            budget.spend(len(data))
            file.write(data)
        os.fchmod(file.fileno(), member.mode & 0o777 | 0o600)
    os.utime(path, (max(0.0, member.mtime), max(0.0, member.mtime)))


def _unpack_symlink(_tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path, root: Path, _budget: Budget) -> None:
    """Make a link that stays inside.

    It may go up only at its beginning, and not above the root: then no chain of such links can lead out either.
    """
    parts = [part for part in member.linkname.split("/") if part not in ("", ".")]
    ups = next((number for number, part in enumerate(parts) if part != ".."), len(parts))
    depth = len(path.relative_to(root).parts) - 1
    if member.linkname.startswith("/") or ".." in parts[ups:] or ups > depth or not member.linkname:
        raise _refused(member, f"is a link out of its directory, to {member.linkname[:200]!r}")
    _clear(path, member)
    path.symlink_to(member.linkname)


def _unpack_hard_link(_tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path, root: Path, _budget: Budget) -> None:
    target = root.joinpath(*_parts(member.linkname, member))
    _make_parents(target, root, member)
    if not stat.S_ISREG(_mode(target)) or target == path:
        raise _refused(member, f"is a hard link to {member.linkname[:200]!r}, which is no file of the archive")
    _clear(path, member)
    os.link(target, path, follow_symlinks=False)


def _decompressed(stream: Reader) -> Reader:
    """Find out from the first bytes what a stream is compressed with, and return it as it was before."""
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
    b"\xfd7zXZ\x00": lzma.LZMADecompressor,
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
