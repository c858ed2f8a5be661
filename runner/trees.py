"""What can be told of a directory's content without reading it: how much disk it takes, and whether it was touched."""

from __future__ import annotations

import hashlib
import mmap
import os
import stat
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from runner.packing import walk

# Kernels stamp changes with a clock that ticks every 10 ms at worst. In seconds.
_TICK = 0.02


@dataclass(frozen=True)
class Survey:
    """``evidence`` is another one when anything below the directory was touched since; ``size`` is in bytes of disk."""

    evidence: str
    size: int


def survey(directory: Path) -> Survey:
    """Look at everything below a directory.

    The time of change, which only the kernel sets, tells of every write, also one that was undone, or that puts back
    all times that a program can set. It is good for as long as this kernel runs: after a crash, the disk may have lost
    what was written. The evidence of what is no directory is "". Raises ExperimentError when a directory cannot be
    read, and OSError.
    """
    digest = hashlib.sha256(Path("/proc/sys/kernel/random/boot_id").read_bytes())
    root = directory.lstat()
    if not stat.S_ISDIR(root.st_mode):
        return Survey("", 0)
    digest.update(repr((root.st_mode, root.st_uid, root.st_gid)).encode())  # its times change when it is moved
    size = 0
    for path in walk(directory):
        status = path.lstat()
        name = os.fsencode(path.relative_to(directory))
        digest.update(repr((name, status.st_mode, status.st_size, status.st_ctime_ns, status.st_ino)).encode())
        size += status.st_blocks * 512 // (1 if status.st_nlink < 2 else status.st_nlink)
    return Survey(digest.hexdigest(), size)


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
