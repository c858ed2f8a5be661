"""What control groups allow this process: version 1 and 2, its own group and every one above it (cgroups(7))."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_PROCESS = Path("/proc/self")


@dataclass(frozen=True)
class _Group:
    """One group's directory, and which version's files are in it."""

    directory: Path
    unified: bool

    def number(self, name: str) -> int | None:
        """Return the number that a file holds; None when it has none, or sets no limit."""
        text = _read(self.directory / name)
        return int(text) if text.isdigit() else None


def cores(process: Path = _PROCESS) -> float | None:
    """Return how many cores' time the process may use; None when nothing limits it."""
    quotas = [quota for group in _groups("cpu", process) if (quota := _quota(group)) is not None]
    return min(quotas, default=None)


def memory(process: Path = _PROCESS) -> int | None:
    """Return the bytes of memory that the process's groups may hold; None when nothing limits them."""
    limits = [limit for group in _groups("memory", process) if (limit := _limit(group)) is not None]
    return min(limits, default=None)


def free_memory(process: Path = _PROCESS) -> int | None:
    """Return the bytes that the process's groups may yet take; None when nothing limits them."""
    rooms = []
    for group in _groups("memory", process):
        limit, used = _limit(group), group.number("memory.current" if group.unified else "memory.usage_in_bytes")
        if limit is not None and used is not None:
            rooms.append(max(0, limit - max(0, used - _reclaimable(group))))
    return min(rooms, default=None)


def own(process: Path = _PROCESS) -> Path | None:
    """Return the directory of the process's group of version 2; None where that is not mounted."""
    return next((group.directory for group in _groups("", process) if group.unified), None)


def _quota(group: _Group) -> float | None:
    if group.unified:
        quota, _, period = _read(group.directory / "cpu.max").partition(" ")
    else:
        quota, period = (_read(group.directory / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
    # No quota is "max" in version 2, -1 in version 1.
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() and int(period) else None


def _limit(group: _Group) -> int | None:
    return group.number("memory.max" if group.unified else "memory.limit_in_bytes")


def _reclaimable(group: _Group) -> int:
    """Return the bytes of files' pages that the kernel gives away before it kills anybody, which count as used."""
    lines = dict(line.split(" ", 1) for line in _read(group.directory / "memory.stat").splitlines() if " " in line)
    return int(lines.get("inactive_file" if group.unified else "total_inactive_file", 0))


def _groups(controller: str, process: Path) -> Iterator[_Group]:
    """Yield the process's group of a controller and those above it, as far as they are mounted here."""
    paths = {}
    for line in _read(process / "cgroup").splitlines():
        _, names, path = line.split(":", 2)
        paths[names] = path
    for root, mounted, unified, controllers in _mounts(process):
        if not unified and controller not in controllers:
            continue
        member = next((paths[names] for names in paths if (names == "") == unified and _has(names, controller)), "/")
        # In a container without a namespace of its own, the path is the host's, and its group is the mount's root.
        below = Path(member).relative_to(root) if Path(member).is_relative_to(root) else Path()
        for directory in (below, *below.parents):
            yield _Group(mounted / directory, unified)


def _has(names: str, controller: str) -> bool:
    return names == "" or controller in names.split(",")


def _mounts(process: Path) -> Iterator[tuple[Path, Path, bool, list[str]]]:
    """Yield each mounted hierarchy: the group that is mounted, where, whether it is version 2, its controllers."""
    for line in _read(process / "mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        fields, (kind, *_, options) = before.split(), after.split() or [""]
        if kind in ("cgroup", "cgroup2"):
            yield Path(fields[3]), Path(fields[4]), kind == "cgroup2", options.split(",")


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
