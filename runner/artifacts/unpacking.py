"""Unpacking tar archives while they stream, whatever is in them."""

from __future__ import annotations

import os
import stat
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, cast

from runner.artifacts import decompression, tar_reading
from runner.artifacts.budget import Budget
from runner.artifacts.decompression import decompressed
from runner.artifacts.tar_reading import Forwards, Metered
from runner.artifacts.walking import stays_inside
from runner.errors import ExperimentError, MachineError, is_machines_own
from runner.storage.base import CHUNK, Reader

_BLOCK = 512
_MOST_MEMBERS = 1_000_000
_DEEPEST = 256
# Directories that are remembered as such, to save looking: some megabytes of names at worst, tens in practice.
_MOST_KNOWN = 2000
# What PAX headers may say of all later members together: tarfile copies it for each. In characters; git needs 50.
_MOST_GLOBAL = 64 * 1024
# PATH_MAX and NAME_MAX of Linux, in bytes.
_LONGEST_PATH = 4096
_LONGEST_NAME = 255
# What a file may seem to hold whose holes take no disk, in bytes.
_LARGEST = 2**44
# No file system here keeps later times, and utime() takes none that are much later. In seconds since 1970.
_LATEST = 2.0**32


def unpack(stream: Reader, directory: Path, budget: Budget) -> None:
    """Unpack an archive into a directory, which should be empty.

    What it is compressed with is found out from its content. Owners and special mode bits are dropped. Nothing outside
    of the directory is touched, whatever the archive says. The stream is read to its end. Raises ExperimentError for
    what is refused or corrupt, or what goes over the budget; errors of the stream pass through.
    """
    plain = Metered(decompressed(stream), budget)
    try:
        with tar_reading.opened(plain) as tar:
            _unpack_members(tar, directory, plain)
        for rest in (plain, stream):
            while rest.read(CHUNK):
                pass
    except (*decompression.DAMAGE, *tar_reading.DAMAGE) as error:
        if isinstance(error, OSError) and is_machines_own(error):
            raise MachineError(f"this machine cannot unpack it: {error.strerror}") from error
        raise ExperimentError(f"the archive cannot be unpacked, it is damaged or is none: {error}") from error


def _unpack_members(tar: tarfile.TarFile, directory: Path, budget: Metered) -> None:
    tree = _Tree(str(directory), budget)
    for number, member in enumerate(tar):
        tar.members = []  # type: ignore[attr-defined] # a stream's members are never asked for again
        if number >= _MOST_MEMBERS:
            raise ExperimentError(f"the archive has more than {_MOST_MEMBERS} members")
        if tar.pax_headers and sum(len(key) + len(value) for key, value in tar.pax_headers.items()) > _MOST_GLOBAL:
            raise _refused(member, f"has more than {_MOST_GLOBAL} characters of global headers")
        budget.spend(_BLOCK)
        if parts := _parts(member.name, member):
            _kind(member)(tar, member, parts, tree)


class _Tree:
    """The directory that is unpacked into, in which nothing is done through links that the archive has made.

    What is known to be a directory stays one, for no member may replace it. There are many members: paths are strings.
    """

    def __init__(self, root: str, budget: Metered) -> None:
        self.root, self.budget = root, budget
        self._known = {""}

    def place(self, parts: list[str], member: tarfile.TarInfo) -> str:
        """Return the path of a member, above which there are directories now."""
        above = "/".join(parts[:-1])
        if above not in self._known:
            self._make(parts[:-1], member)
        return f"{self.root}/{above}/{parts[-1]}" if above else f"{self.root}/{parts[-1]}"

    def is_directory(self, parts: list[str]) -> None:
        """Remember it; not without limit, for there may be millions."""
        if len(self._known) > _MOST_KNOWN:
            self._known = {""}
        self._known.add("/".join(parts))

    def _make(self, parts: list[str], member: tarfile.TarInfo) -> None:
        for depth in range(1, len(parts) + 1):
            path = "/".join([self.root, *parts[:depth]])
            mode = _mode(path)
            if mode and not stat.S_ISDIR(mode):
                raise _refused(member, "lies below something that is no directory")
            if not mode:
                self.budget.spend(_BLOCK)
                os.mkdir(path)  # noqa: PTH102 -- there are many
            self.is_directory(parts[:depth])


_Unpacker = Callable[[tarfile.TarFile, tarfile.TarInfo, list[str], _Tree], None]


def _kind(member: tarfile.TarInfo) -> _Unpacker:
    if member.isreg():
        return _unpack_file
    if member.isdir():
        return _unpack_directory
    if member.issym():
        return _unpack_symlink
    if member.islnk():
        return _unpack_hard_link
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
    if 4 * len(name) > _LONGEST_NAME and (  # no character has more bytes
        len(os.fsencode(name)) > _LONGEST_PATH or any(len(os.fsencode(part)) > _LONGEST_NAME for part in parts)
    ):
        raise _refused(member, "has a name that is too long")
    return parts


def _mode(path: str) -> int:
    """Return the mode of what is there, 0 for nothing; links are not followed."""
    try:
        return os.lstat(path).st_mode
    except FileNotFoundError:
        return 0


def _clear(path: str, member: tarfile.TarInfo) -> None:
    """Make way for a member that comes again, as a later one of the same name replaces the former."""
    mode = _mode(path)
    if stat.S_ISDIR(mode):
        raise _refused(member, "would replace a directory")
    if mode:
        os.unlink(path)  # noqa: PTH108


def _unpack_directory(_tar: tarfile.TarFile, member: tarfile.TarInfo, parts: list[str], tree: _Tree) -> None:
    path = tree.place(parts, member)
    mode = _mode(path)
    if mode and not stat.S_ISDIR(mode):
        raise _refused(member, "would replace a file by a directory")
    if not mode:
        os.mkdir(path)  # noqa: PTH102 -- there are many
    tree.is_directory(parts)
    os.chmod(path, member.mode & 0o777 | 0o700)  # noqa: PTH101


def _unpack_file(tar: tarfile.TarFile, member: tarfile.TarInfo, parts: list[str], tree: _Tree) -> None:
    path = tree.place(parts, member)
    if member.size > _LARGEST:
        raise _refused(member, "is larger than any disk")
    source = cast("Forwards", tar.fileobj)
    source.seek(member.offset_data)
    with os.fdopen(_created(path, member), "wb", buffering=0) as file:
        sparse: list[tuple[int, int]] | None = getattr(member, "sparse", None)
        for start, length in _pieces(sparse or [(0, member.size)], member.size):
            if start:
                file.seek(start)
            _copy(source, file, length, tree.budget)
        if sparse:
            file.truncate(member.size)
        os.fchmod(file.fileno(), member.mode & 0o777 | 0o600)
        time = min(max(0.0, member.mtime), _LATEST)  # in this order, which makes 0 of NaN
        os.utime(file.fileno(), (time, time))


def _created(path: str, member: tarfile.TarInfo) -> int:
    """Create a file, in the place of what may be there, and return its descriptor."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        return os.open(path, flags, 0o600)
    except FileExistsError:
        _clear(path, member)
        return os.open(path, flags, 0o600)


def _pieces(listed: list[tuple[int, int]], size: int) -> list[tuple[int, int]]:
    """Return offset and length of each piece of a file's data, and refuse what cannot be: tarfile does not."""
    found = [piece for piece in listed if piece[1]]
    at = 0
    for start, length in found:
        if start < at or length < 0 or start + length > size:
            raise tarfile.ReadError("a file's size or its holes cannot be")
        at = start + length
    return found


def _copy(source: Forwards, file: IO[bytes], length: int, budget: Metered) -> None:
    while length > 0:
        data = source.piece(min(length, CHUNK))
        if not data:
            raise tarfile.ReadError("it ends in the middle of a file")
        budget.spend(len(data))
        length -= len(data)
        rest = memoryview(data)
        while rest:
            rest = rest[file.write(rest) :]


def _unpack_symlink(_tar: tarfile.TarFile, member: tarfile.TarInfo, parts: list[str], tree: _Tree) -> None:
    path = tree.place(parts, member)
    if not stays_inside("/".join(parts), member.linkname):
        raise _refused(member, f"is a link out of its directory, to {member.linkname[:200]!r}")
    if "\0" in member.linkname or len(os.fsencode(member.linkname)) > _LONGEST_PATH:
        raise _refused(member, "is a link to a name that cannot be")
    _clear(path, member)
    os.symlink(member.linkname, path)  # noqa: PTH211


def _unpack_hard_link(_tar: tarfile.TarFile, member: tarfile.TarInfo, parts: list[str], tree: _Tree) -> None:
    path = tree.place(parts, member)
    named = _parts(member.linkname, member)
    target = tree.place(named, member) if named else tree.root
    if not stat.S_ISREG(_mode(target)) or target == path:
        raise _refused(member, f"is a hard link to {member.linkname[:200]!r}, which is no file of the archive")
    _clear(path, member)
    os.link(target, path, follow_symlinks=False)
