"""Files of ours in places where others may have put something else: links, pipes, or very much."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from runner.place import remove

_NO_FILE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO)


def end_of(path: Path, most: int) -> bytes:
    """Return the end of a plain file in a plain directory, at most so many bytes; b"" of all that is something else.

    A file that has another name too may be somebody else's. Raises OSError.
    """
    try:
        fd = _opened(path)
    except OSError as error:
        if error.errno in _NO_FILE:
            return b""
        raise
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
            return b""
        return os.pread(fd, most, max(0, status.st_size - most))
    finally:
        os.close(fd)


def _opened(path: Path) -> int:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    directory = os.open(path.parent, flags | os.O_DIRECTORY)
    try:
        return os.open(path.name, flags | os.O_NONBLOCK, dir_fd=directory)
    finally:
        os.close(directory)


def new(path: Path, content: bytes = b"") -> None:
    """Make a file in the place of whatever is there; what that leads to stays as it is. Raises OSError."""
    if os.path.lexists(path):
        remove(path)
    with path.open("xb") as file:
        file.write(content)
