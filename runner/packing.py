"""Packing directories into tar archives while they are read, and telling whether they have changed."""

from __future__ import annotations

import hashlib
import os
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

from runner.archive import compression_of
from runner.errors import ExperimentError
from runner.storage.base import CHUNK, Writer


def pack(directory: Path, out: Writer, name: str, *, first: str = "") -> None:
    """Write a directory's content as an archive, compressed as ``name`` says, with the file ``first`` before all else.

    Files that vanish meanwhile are left out; one that grows or shrinks keeps the size that it had when it was opened
    (NUL bytes take the place of what is gone). Sockets, pipes and devices are left out. Raises ExperimentError for what
    cannot be read; errors of ``out`` pass through.
    """
    kind = compression_of(name)
    sink = _Sink(out)
    mode = {"": "w|", "gz": "w|gz", "bz2": "w|bz2"}[kind]
    # GNU's format: names as the bytes that they are, any length, any size, and every Python's tarfile reads it.
    with tarfile.open(  # type: ignore[call-overload] # typeshed wants a literal mode
        fileobj=sink, mode=mode, bufsize=CHUNK, format=tarfile.GNU_FORMAT, encoding="utf-8", errors="surrogateescape"
    ) as tar:
        for path in _ordered(directory, first):
            _pack_one(tar, path, path.relative_to(directory).as_posix())
            tar.members = []  # as above


class _Sink:
    """Passes on what is written, until something fails: tarfile flushes even then, and nobody wants that."""

    def __init__(self, out: Writer) -> None:
        self._out = out
        self._failed = False

    def write(self, data: bytes) -> int:
        if self._failed:
            return len(data)
        try:
            return self._out.write(data)
        except BaseException:
            self._failed = True
            raise


def _ordered(directory: Path, first: str) -> Iterator[Path]:
    head = directory / first if first else None
    if head and head.is_file() and not head.is_symlink():
        yield head
    for path in walk(directory):
        if path != head:
            yield path


def walk(directory: Path) -> Iterator[Path]:
    """Yield everything below a directory, in the order of names, a directory before what is in it."""
    # A stack of our own: experiments make directories deeper than Python's.
    levels = [_entries(directory)]
    while levels:
        path = next(levels[-1], None)
        if path is None:
            levels.pop()
            continue
        yield path
        if _is_directory(path):
            levels.append(_entries(path))


def _entries(directory: Path) -> Iterator[Path]:
    try:
        return iter([directory / name for name in sorted(os.listdir(directory))])
    except (FileNotFoundError, NotADirectoryError):
        return iter(())  # it is gone, or something else by now
    except OSError as error:
        raise ExperimentError(f"{directory} cannot be read: {error.strerror}") from error


def _is_directory(path: Path) -> bool:
    try:
        return stat.S_ISDIR(path.lstat().st_mode)
    except OSError:
        return False


def _pack_one(tar: tarfile.TarFile, path: Path, name: str) -> None:
    try:
        status = path.lstat()
        member = _member(path, name, status)
        if member is None:
            return
        if not member.isreg():
            tar.addfile(member)
            return
        file = open(path, "rb", opener=_without_links)  # noqa: SIM115 -- Path.open knows no opener
    except FileNotFoundError:
        return
    except OSError as error:
        raise ExperimentError(f"{path} cannot be read: {error.strerror}") from error
    with file:
        member.size = os.fstat(file.fileno()).st_size
        tar.addfile(member, cast("IO[bytes]", _Exactly(file, path)))


def _member(path: Path, name: str, status: os.stat_result) -> tarfile.TarInfo | None:
    member = tarfile.TarInfo(name)
    member.mode = stat.S_IMODE(status.st_mode) & 0o777
    member.mtime = int(status.st_mtime)
    if stat.S_ISDIR(status.st_mode):
        member.type = tarfile.DIRTYPE
    elif stat.S_ISLNK(status.st_mode):
        member.type, member.linkname = tarfile.SYMTYPE, str(path.readlink())
    elif not stat.S_ISREG(status.st_mode):
        return None
    return member


class _Exactly:
    """A file that gives as many bytes as it is asked for, which tarfile counts by the header."""

    def __init__(self, file: IO[bytes], path: Path) -> None:
        self._file, self._path = file, path

    def read(self, size: int) -> bytes:
        try:
            data = self._file.read(size)
        except OSError as error:
            raise ExperimentError(f"{self._path} cannot be read: {error.strerror}") from error
        return data.ljust(size, b"\0")


def copy_file(path: Path, out: Writer) -> None:
    """Write a single file as it is; a symbolic link is not followed. Raises ExperimentError when it cannot be read."""
    try:
        with open(path, "rb", opener=_without_links) as file:
            while data := file.read(CHUNK):
                out.write(data)
    except OSError as error:
        raise ExperimentError(f"{path} cannot be read: {error.strerror}") from error


def _without_links(path: str, flags: int) -> int:
    """Open what was a regular file when it was looked at: never through a link, and never waiting for a pipe."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def fingerprint(directory: Path) -> str:
    """Return a digest that is another one when anything below the directory has changed; "" when it has no files."""
    digest, files = hashlib.sha256(), 0
    for path in walk(directory):
        try:
            status = path.lstat()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise ExperimentError(f"{path} cannot be read: {error.strerror}") from error
        files += not stat.S_ISDIR(status.st_mode)
        # A directory's own times change with what is in it, which is listed anyway.
        changing = () if stat.S_ISDIR(status.st_mode) else (status.st_size, status.st_mtime_ns, status.st_ino)
        digest.update(repr((os.fsencode(path.relative_to(directory)), status.st_mode, *changing)).encode())
    return digest.hexdigest() if files else ""
