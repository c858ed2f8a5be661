"""Looking at processes: which ones there are, who they are, and what a tree of them uses (proc(5))."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")

# Fields of /proc/PID/stat, counted from the third one, the state.
_STATE, _PARENT, _TIMES, _START, _RESIDENT = 0, 1, slice(11, 15), 19, 21


@dataclass(frozen=True)
class Use:
    """What some processes use: bytes of memory now, and at most of any single one so far; seconds of CPU; their number.

    Memory that they share counts for each of them. The seconds are also those of children that they have waited for.
    """

    memory: int
    largest: int
    cpu: float
    processes: int


def descendants(root: int) -> list[int]:
    """List the processes below ``root``, children before grandchildren."""
    children: dict[int, list[int]] = {}
    for pid in everybody():
        children.setdefault(_parent(pid), []).append(pid)
    found = list(children.get(root, ()))
    for pid in found:  # grows while it is walked
        found.extend(children.get(pid, ()))
    return found


def tree(root: int) -> list[int]:
    """List the processes below ``root`` at the cost of looking at those only; one that just starts may be missing."""
    found = _children(root)
    if found is None:
        return descendants(root)
    for pid in found:  # grows while it is walked
        found.extend(_children(pid) or ())
    return found


def _children(pid: int) -> list[int] | None:
    """List the children of all threads; None where this kernel does not say, or the process is gone."""
    found: list[int] = []
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            found += map(int, Path(f"/proc/{pid}/task/{thread}/children").read_bytes().split())
    except OSError:
        return found or None
    return found


def ancestors(pid: int) -> list[int]:
    """List a process's parent, its parent, and so on, as far as they are seen here."""
    found = []
    while (pid := _parent(pid)) > 0:
        found.append(pid)
    return found


def use(pids: Iterable[int]) -> Use:
    """Measure processes; those that are gone count for nothing."""
    memory, largest, cpu, processes = 0, 0, 0.0, 0
    for pid in pids:
        if fields := _status(pid):
            memory += int(fields[_RESIDENT]) * _PAGE
            largest = max(largest, _high_water(pid))
            cpu += sum(map(int, fields[_TIMES])) / _TICKS
            processes += 1
    return Use(memory, largest, cpu, processes)


def proportional(pids: Iterable[int]) -> int:
    """Return the bytes of memory of processes that share some, each page counted once; slow for large ones."""
    return sum(_sized(f"/proc/{pid}/smaps_rollup", b"Pss:") for pid in pids)


def is_python(pid: int) -> bool:
    """Tell whether a process runs a Python interpreter."""
    try:
        return Path(f"/proc/{pid}/exe").readlink().name.startswith("python")
    except OSError:
        return False


def here() -> str:
    """Name the processes that this one sees: those of one boot of a machine, in one namespace."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return "unknown"


def birth(pid: int) -> str:
    """Name a living process as no later one is named: by its id and its start, in ticks since the boot; "" if dead."""
    status = _status(pid)
    return f"{pid}-{int(status[_START])}" if status and status[_STATE] not in (b"Z", b"X") else ""


def everybody() -> list[int]:
    """List all other processes."""
    own = os.getpid()
    return [int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) != own]


def environment(pid: int) -> set[bytes]:
    """Return the variables that a process was started with, each as ``NAME=value``."""
    try:
        return set(Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"))
    except OSError:
        return set()


def killed_for_memory() -> int:
    """Return how many processes this machine has killed since it was started, because it had no memory left."""
    return _counted("/proc/vmstat", b"oom_kill ")


def _parent(pid: int) -> int:
    status = _status(pid)
    return int(status[_PARENT]) if status else -1


def _status(pid: int) -> list[bytes]:
    """Return the fields of /proc/PID/stat from the third one on; [] when there is no process."""
    try:
        # "pid (name) state ppid …": the name may hold anything, so look behind its last parenthesis.
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return []


def _high_water(pid: int) -> int:
    return _sized(f"/proc/{pid}/status", b"VmHWM:")


def _sized(path: str, name: bytes) -> int:
    """Return a figure of a file that has lines like ``VmHWM:  1234 kB``, in bytes; 0 when it is not there."""
    return _counted(path, name) * 1024


def _counted(path: str, name: bytes) -> int:
    try:
        lines = Path(path).read_bytes().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(name)), 0)
