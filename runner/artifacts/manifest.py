"""What is stored of a directory, kept in a file beside it, so that what has not changed is not stored again.

A member whose size, times and place on the disk are the same is taken to be the same. One that was touched, or replaced
by its like, is read and compared with the digest of what was stored. Both streams and the file are read in step, so
memory is flat however many members there are.
"""

from __future__ import annotations

import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import IO

from runner.artifacts.packing import SPARSE, Note, copy
from runner.artifacts.walking import Entry
from runner.errors import ExperimentError, MachineError
from runner.machine.plain_files import new

# Clocks of file systems tick slowly, some every two seconds: what was written within a tick before it was read may
# have been written again after that, and look the same. In nanoseconds.
_TICK = 2_000_000_000


class Manifest:
    """The manifest of what ``entries`` yields, always in the same order, kept in the file ``path``."""

    def __init__(self, path: Path, entries: Callable[[], Iterator[Entry]]) -> None:
        self._path, self._entries = path, entries

    @contextmanager
    def renewed(self) -> Iterator[Note]:
        """Write it anew while it is told what is stored; what was there stays unless all goes well.

        Raises MachineError when the disk does not take it.
        """
        unfinished = self._path.with_suffix(".new")
        now = time.time_ns()
        try:
            new(unfinished)  # packages that were built in a container may have put a link there
            with unfinished.open("w") as file:
                yield lambda entry, digest: file.write(_line(entry, digest, now))
            unfinished.replace(self._path)
        except OSError as error:
            raise MachineError(f"{unfinished} cannot be written: {error.strerror}") from error

    def take(self) -> None:
        """Take what is there now to be what is stored. Raises ExperimentError for what cannot be read."""
        with self.renewed() as note:
            for entry in self._entries():
                note(entry, "")

    def differs(self) -> bool:
        """Tell whether there are files, and anything is not as it is stored.

        Raises ExperimentError for what cannot be read.
        """
        files, changed = False, False
        with self._stored() as lines:
            for entry in self._entries():
                files = files or not stat.S_ISDIR(entry.status.st_mode)
                changed = changed or not _same(entry, lines.readline())
                if files and changed:
                    return True
            return files and lines.readline() != ""

    def _stored(self) -> IO[str]:
        """Open what was written down; an experiment may have removed it, and nothing is known to be stored then."""
        try:
            return self._path.open()
        except FileNotFoundError:
            return StringIO()


def _line(entry: Entry, digest: str, now: int) -> str:
    """``SHAPE<tab>STAMP<tab>DIGEST``; without a stamp, nothing but its content tells whether a file has changed."""
    fresh = max(entry.status.st_mtime_ns, entry.status.st_ctime_ns) > now - _TICK
    return f"{_shape(entry)}\t{'' if fresh and digest else _stamp(entry)}\t{digest}\n"


def _same(entry: Entry, line: str) -> bool:
    shape, _, rest = line.rstrip("\n").partition("\t")
    stamp, _, digest = rest.partition("\t")
    if shape != _shape(entry):
        return False
    if not stat.S_ISREG(entry.status.st_mode) or stamp == _stamp(entry):
        return True
    return digest not in ("", SPARSE) and digest == _digest(entry)


def _shape(entry: Entry) -> str:
    """What tells members apart that hold different things, in one line without tabs."""
    size = entry.status.st_size if stat.S_ISREG(entry.status.st_mode) else 0
    return f"{entry.name!a} {entry.status.st_mode:o} {size} {entry.target!a}"


def _stamp(entry: Entry) -> str:
    return f"{entry.status.st_mtime_ns} {entry.status.st_ctime_ns} {entry.status.st_ino}"


def _digest(entry: Entry) -> str:
    """Read a file; return "" when that cannot be done any more."""
    digests: list[str] = []
    try:
        copy(entry, _Nowhere(), note=lambda _entry, digest: digests.append(digest))
    except ExperimentError:
        return ""
    return digests[0]


class _Nowhere:
    """A Writer."""

    def write(self, data: bytes, /) -> int:
        return len(data)
