"""Sparse files: where they have data, and how GNU tar's format 1.0 of them says so.

See https://www.gnu.org/software/tar/manual/html_section/Sparse-Formats.html.
"""

from __future__ import annotations

import errno
import os

_BLOCK = 512
# Smaller holes together are not worth the trouble, and more pieces of data are none for a map. In bytes.
_WORTH = 1024 * 1024
_MOST_PIECES = 10_000

Pieces = list[tuple[int, int]]
"""Offset and length of each piece of data, in order."""


def pieces(fd: int, status: os.stat_result) -> Pieces | None:
    """Find the data of a file; None for one without holes of any size, or on a file system that does not tell."""
    if status.st_size - status.st_blocks * 512 < _WORTH:
        return None
    found: Pieces = []
    at = 0
    while at < status.st_size and len(found) <= _MOST_PIECES:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
            at = os.lseek(fd, start, os.SEEK_HOLE)
        except OSError as error:
            if error.errno != errno.ENXIO:  # which says that only a hole is left
                return None
            break
        if start < status.st_size:  # it may have grown since
            found.append((start, min(at, status.st_size) - start))
    os.lseek(fd, 0, os.SEEK_SET)
    data = sum(length for _, length in found)
    return found if len(found) <= _MOST_PIECES and status.st_size - data >= _WORTH else None


def as_map(found: Pieces, size: int) -> bytes:
    """Write down where the data of a file of that size is, as it goes before the data."""
    listed = [*found, (size, 0)]
    text = "".join(f"{number}\n" for number in (len(listed), *(number for piece in listed for number in piece)))
    return text.encode().ljust(-(-len(text) // _BLOCK) * _BLOCK, b"\0")


def headers(name: str, size: int) -> dict[str, str]:
    """Return the extended headers of a member that is such a map and the data."""
    return {
        "GNU.sparse.major": "1",
        "GNU.sparse.minor": "0",
        "GNU.sparse.name": name,
        "GNU.sparse.realsize": str(size),
    }
