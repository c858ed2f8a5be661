"""Objects that are files of this machine, or of a share that is mounted on it."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path

from runner.errors import RunnerError, Unavailable
from runner.storage.base import Denied, NotFound, Stored

_MISSING = {errno.ENOENT, errno.ENOTDIR}
_REFUSED = {
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.EISDIR,
    errno.ENOTEMPTY,
    errno.ELOOP,
    errno.ENXIO,
    errno.ENAMETOOLONG,
}


class FileStore:
    """A directory as a bucket. Only what lies below one of the ``roots``, after all symbolic links, is in reach.

    A file system answers at once or not at all: nothing is tried again here.
    """

    def __init__(self, directory: str, roots: Collection[str]) -> None:
        self._directory = directory
        self._roots = [Path(os.path.realpath(root)) for root in roots]

    @contextmanager
    def open(self, key: str) -> Iterator[Stored]:
        """See Store. A file that gets shorter while it is read breaks the stream."""
        path = self._resolve(key)
        with _open(path) as file:
            status = os.fstat(file.fileno())
            yield Stored(_Stream(file, path, status.st_size), _etag(status), status.st_size)

    def etag(self, key: str) -> str | None:
        """See Store: made of the inode, its size and its time of change, as every writer here makes a new inode."""
        path = self._resolve(key)
        try:
            status = path.stat()
        except OSError as error:
            if error.errno in _MISSING:
                return None
            raise _translate(error, path) from error
        _check_regular(status, path)
        return _etag(status)

    @contextmanager
    def create(self, key: str) -> Iterator[_Sink]:
        """See Store. The directories on the way are made as needed."""
        path = self._resolve(key)
        draft = path.with_name(f".{secrets.token_hex(8)}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = FileIO(draft, "x")
        except OSError as error:
            raise _translate(error, path) from error
        try:
            with file:
                _check_place(file.fileno(), draft)
                yield _Sink(file, path)
                _commit(file, draft, path)
        except BaseException:
            with suppress(OSError):
                draft.unlink()
            raise

    def _resolve(self, key: str) -> Path:
        """Return the file's path without symbolic links; the check holds for that path, so only it may be used."""
        path = Path(os.path.realpath(f"{self._directory.rstrip('/')}/{key}"))
        if not any(root in path.parents for root in self._roots):
            raise Denied(
                f"the file {key!r} of {self._directory!r} is outside of the directories that this runner may use: "
                "its operator can allow more of them with --file-root"
            )
        return path


class _Stream:
    def __init__(self, file: FileIO, path: Path, size: int) -> None:
        self._file, self._path, self._left = file, path, size

    def read(self, size: int = -1, /) -> bytes:
        wanted = self._left if size < 0 else min(size, self._left)
        try:
            data = self._file.read(wanted)
        except OSError as error:
            raise _translate(error, self._path) from error
        if wanted and not data:
            raise Unavailable(f"{self._path} ended {self._left} bytes too early: it was changed while it was read")
        self._left -= len(data)
        return data


class _Sink:
    def __init__(self, file: FileIO, path: Path) -> None:
        self._file, self._path = file, path

    def write(self, data: bytes, /) -> int:
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            raise _translate(error, self._path) from error
        return len(data)


def _open(path: Path) -> FileIO:
    """Open a regular file. A pipe or device is refused without waiting for it; a symbolic link is not followed."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise _translate(error, path) from error
    try:
        _check_regular(os.fstat(descriptor), path)
        _check_place(descriptor, path)
    except Denied:
        os.close(descriptor)
        raise
    return FileIO(descriptor, "r")


def _check_place(descriptor: int, path: Path) -> None:
    """Make sure that no link has taken the place of a directory since the path was looked at."""
    there = os.readlink(f"/proc/self/fd/{descriptor}")  # noqa: PTH115
    if there not in (str(path), f"{path} (deleted)"):
        raise Denied(f"{path} is not where it was: a directory above it was exchanged")


def _check_regular(status: os.stat_result, path: Path) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise Denied(f"{path} is not a regular file")


def _commit(file: FileIO, draft: Path, path: Path) -> None:
    """Make a finished draft visible. What is on the disk comes first: a name must never stand for half a file."""
    try:
        os.fsync(file.fileno())
        draft.replace(path)
    except OSError as error:
        raise _translate(error, path) from error


def _etag(status: os.stat_result) -> str:
    return f"{status.st_ino:x}-{status.st_mtime_ns:x}-{status.st_size:x}"


def _translate(error: OSError, path: Path) -> RunnerError:
    reason = error.strerror or str(error)
    if error.errno in _MISSING:
        return NotFound(f"the file {path} does not exist")
    if error.errno in _REFUSED:
        return Denied(f"{path} cannot be used: {reason}")
    return Unavailable(f"{path} cannot be used just now: {reason}")
