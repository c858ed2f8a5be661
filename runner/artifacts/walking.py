"""What is in a directory of an experiment that may be changing it; never what is elsewhere, whatever it links to."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from io import FileIO
from pathlib import Path
from typing import IO, NamedTuple, cast

from runner.errors import ExperimentError

_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)


class Entry(NamedTuple):
    """A file, directory or symbolic link below ``root``: ``name`` is relative to that, ``target`` a link's."""

    root: str
    name: str
    status: os.stat_result
    target: str = ""

    @property
    def path(self) -> str:
        """Where it is."""
        return f"{self.root}/{self.name}"


def stays_inside(name: str, target: str) -> bool:
    """Tell whether a link of that name cannot lead out of what its name is relative to.

    It may go up only at its beginning, and not above the root: then no chain of such links can lead out either.
    """
    steps = [step for step in target.split("/") if step not in ("", ".")]
    ups = next((number for number, step in enumerate(steps) if step != ".."), len(steps))
    depth = sum(part not in ("", ".") for part in name.split("/")) - 1
    return bool(target) and not target.startswith("/") and ".." not in steps[ups:] and ups <= depth


def kept_target(link: Entry) -> str:
    """Return a link's target as it is good wherever its directory is unpacked; "" where it leads out of that."""
    target = link.target
    if f"{target}/".startswith(f"{link.root}/"):
        target = os.path.relpath(target, os.path.dirname(link.path))  # noqa: PTH120 -- it is about text
    return target if stays_inside(link.name, target) else ""


def only(directory: Path, name: str) -> Iterator[Entry]:
    """Yield one file of a directory, if it is there. Raises ExperimentError when that cannot be told."""
    entry = _entry(_root(directory), name)
    if entry and stat.S_ISREG(entry.status.st_mode):
        yield entry


def members(directory: Path, first: str = "") -> Iterator[Entry]:
    """Yield everything below a directory, in the order of names, a directory before what is in it.

    The file ``first`` comes before all else. Sockets, pipes and devices are left out, and what vanishes meanwhile.
    Raises ExperimentError for what cannot be read.
    """
    root = _root(directory)
    head = next(only(directory, first), None) if first else None
    if head:
        yield head
    # A stack of our own: experiments make directories deeper than Python's.
    levels = [_names(root, "")]
    while levels:
        name = next(levels[-1], None)
        if name is None:
            levels.pop()
            continue
        entry = _entry(root, name)
        if entry is None or (head and name == first):
            continue
        yield entry
        if stat.S_ISDIR(entry.status.st_mode):
            levels.append(_names(root, f"{name}/"))


def _root(directory: Path) -> str:
    # The experiment can put a link in the place of the directory, but not of what that lies in.
    return f"{os.path.realpath(directory.parent)}/{directory.name}"


def _names(root: str, directory: str) -> Iterator[str]:
    try:
        fd = _opened(root, directory, os.O_DIRECTORY)
    except OSError as error:
        if error.errno in _GONE:
            return iter(())  # or something else by now
        raise unreadable(f"{root}/{directory}", error) from error
    try:
        names = os.listdir(fd)
    finally:
        os.close(fd)
    return iter([directory + name for name in sorted(names)])


def _entry(root: str, name: str) -> Entry | None:
    path = f"{root}/{name}"
    try:
        status = os.lstat(path)
        if stat.S_ISLNK(status.st_mode):
            return Entry(root, name, status, os.readlink(path))  # noqa: PTH115 -- there are many
    except OSError as error:
        if error.errno in (*_GONE, errno.EINVAL):
            return None
        raise unreadable(path, error) from error
    return Entry(root, name, status) if stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode) else None


def opened(entry: Entry) -> tuple[Entry, IO[bytes]]:
    """Open what was a regular file when it was looked at; return it as it is now.

    It has no buffer: every read is the system's. Raises FileNotFoundError when it is no regular file any more.
    """
    try:
        fd = _opened(entry.root, entry.name, os.O_NONBLOCK)  # it may be a pipe by now
    except OSError as error:
        if error.errno in _GONE:
            raise FileNotFoundError(errno.ENOENT, "it is gone", entry.path) from error
        raise
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode) or (status.st_nlink > 1 and status.st_uid != os.lstat(entry.root).st_uid):
        os.close(fd)  # what another user has is no experiment's, and not every system keeps links to it from being made
        raise FileNotFoundError(errno.ENOENT, "it is gone", entry.path)
    return Entry(entry.root, entry.name, status), cast("IO[bytes]", FileIO(fd))


def _opened(root: str, name: str, flags: int) -> int:
    """Open what lies below the root, and not what a link leads to that has just taken a directory's place."""
    path = f"{root}/{name}".rstrip("/")
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | flags)
    there = os.readlink(f"/proc/self/fd/{fd}")  # noqa: PTH115 -- there are many
    if there not in (path, f"{path} (deleted)"):
        os.close(fd)
        raise FileNotFoundError(errno.ENOENT, "it is gone", path)
    return fd


def unreadable(path: str, error: OSError) -> ExperimentError:
    """Return the error that the system's is for an attempt."""
    return ExperimentError(f"{path} cannot be read: {error.strerror}")
