"""What this machine has: cores, memory, disk; a container's limits count as the machine's."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from runner.machine.allocate import Resources

# What the runner leaves to everybody else when the operator does not say how much it may use.
_SHARE = 0.85

_CGROUP = Path("/sys/fs/cgroup")


def take_stock(directory: Path, *, max_cores: int = 0, max_mem: int = 0, max_disk: int = 0, kept: int = 0) -> Resources:
    """Return what experiments may use; 0 means that the machine decides.

    ``directory`` says which disk; ``kept`` is what could be removed from it at any time.
    """
    return Resources(
        cpus=min(max_cores or cores(), cores()),
        ram=max_mem or int(free_memory() * _SHARE),
        hdd=max_disk or int((shutil.disk_usage(directory).free + kept) * _SHARE),
    )


def cores() -> int:
    """Count the cores that this process may use: its affinity, and its cgroup's quota rounded down, at least 1."""
    usable = len(os.sched_getaffinity(0))
    quota, _, period = _read(_CGROUP / "cpu.max").partition(" ")
    if quota.isdigit() and period.isdigit():
        usable = min(usable, max(1, int(quota) // int(period)))
    return usable


def free_memory() -> int:
    """Return the bytes of memory that are available now, within the cgroup's limit."""
    lines = dict(line.split(":", 1) for line in _read(Path("/proc/meminfo")).splitlines() if ":" in line)
    available = int(lines["MemAvailable"].split()[0]) * 1024
    limit, used = _read(_CGROUP / "memory.max"), _read(_CGROUP / "memory.current")
    if limit.isdigit() and used.isdigit():
        available = min(available, max(0, int(limit) - int(used)))
    return available


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
