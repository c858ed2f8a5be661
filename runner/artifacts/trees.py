"""What can be told of files without reading them: how much disk they take, and whether they were touched."""

from __future__ import annotations

import hashlib
import mmap
import os
import stat
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# Kernels stamp changes with a clock that ticks every 10 ms at worst. In seconds.
_TICK = 0.02


@dataclass(frozen=True)
class Survey:
    """``evidence`` is another one when anything was touched since; ``size`` is in bytes of disk."""

    evidence: str
    size: int


def survey(root: Path) -> Survey:
    """Look at a file, or at a directory and everything below it.

    The time of change, which only the kernel sets, tells of every write, also one that was undone, or that puts back
    all times that a program can set. It is good for as long as this kernel runs: after a crash, the disk may have lost
    what was written. The evidence of a link and the like is "". Raises OSError when a directory cannot be read.
    """
    digest = hashlib.sha256(Path("/proc/sys/kernel/random/boot_id").read_bytes())
    status = root.lstat()
    if not stat.S_ISDIR(status.st_mode):
        digest.update(_touched(status))
        return Survey(digest.hexdigest() if stat.S_ISREG(status.st_mode) else "", status.st_blocks * 512)
    digest.update(repr((status.st_mode, status.st_uid, status.st_gid)).encode())  # its times change when it is moved
    size = 0
    for name, status in _walk(root):
        digest.update(repr(name).encode() + _touched(status))
        size += status.st_blocks * 512 // max(1, status.st_nlink if stat.S_ISREG(status.st_mode) else 1)
    return Survey(digest.hexdigest(), size)


def _walk(root: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Yield the name and status of everything below a directory, always in the same order; nothing is left out."""
    waiting = [""]
    while waiting:
        above = waiting.pop()
        with os.scandir(root / above) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                status = entry.stat(follow_symlinks=False)
                yield above + entry.name, status
                if stat.S_ISDIR(status.st_mode):
                    waiting.append(f"{above}{entry.name}/")


def _touched(status: os.stat_result) -> bytes:
    return repr((status.st_mode, status.st_size, status.st_ctime_ns, status.st_ino)).encode()


def tells_writes(directory: Path) -> bool:
    """Tell whether the file system stamps files that are written through memory; older ones in memory do not."""
    with tempfile.TemporaryFile(dir=directory) as file:
        file.write(bytes(mmap.PAGESIZE))
        file.flush()
        before = os.fstat(file.fileno()).st_ctime_ns
        time.sleep(_TICK)
        with mmap.mmap(file.fileno(), mmap.PAGESIZE) as memory:
            memory[0] = 1
            memory.flush()
        return os.fstat(file.fileno()).st_ctime_ns != before
