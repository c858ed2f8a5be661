"""What this machine has: cores, memory, disk; a container's limits count as the machine's."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from runner.machine import cgroups
from runner.machine.allocate import Resources

# What the runner leaves to everybody else when the operator does not say how much it may use.
_SHARE = 0.85


def take_stock(directory: Path, *, max_cores: int = 0, max_mem: int = 0, max_disk: int = 0, kept: int = 0) -> Resources:
    """Return what experiments may use; 0 means that the machine decides, and more than there is means all of it.

    ``directory`` says which disk; ``kept`` is what could be removed from it at any time.
    """
    disk = shutil.disk_usage(directory).free + kept
    return Resources(
        cpus=min(max_cores or cores(), cores()),
        ram=min(max_mem, memory()) or int(free_memory() * _SHARE),
        hdd=min(max_disk, disk) or int(disk * _SHARE),
    )


def cores() -> int:
    """Count the cores that this process may use: its affinity, and its groups' quota rounded down, at least 1."""
    usable, quota = len(os.sched_getaffinity(0)), cgroups.cores()
    return usable if quota is None else min(usable, max(1, int(quota)))


def memory() -> int:
    """Return the bytes of memory that there are, within the groups' limits."""
    limit = cgroups.memory()
    return _meminfo("MemTotal") if limit is None else min(_meminfo("MemTotal"), limit)


def free_memory() -> int:
    """Return the bytes of memory that are available now, within the groups' limits."""
    room = cgroups.free_memory()
    return _meminfo("MemAvailable") if room is None else min(_meminfo("MemAvailable"), room)


def _meminfo(name: str) -> int:
    lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines() if ":" in line)
    return int(lines[name].split()[0]) * 1024
