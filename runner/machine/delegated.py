"""Control groups for programs, below the runner's own where that was given to it (version 2; see cgroups(7)).

Where a group has limits for those below it, no process may be in it. So the runner moves into a leaf first:
``<base>/studio-runner``, where attempts start too, and beside it ``<base>/experiment-<attempt's process>`` for each
experiment.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from runner.machine import cgroups, procfs

log = logging.getLogger(__name__)

_LEAF = "studio-runner"
_PREFIX = "experiment-"
_CONTROLLERS = {"memory", "pids"}
# systemd marks so what it has delegated: the second for root only, but also before version 251.
_MARKS = ("user.delegate", "trusted.delegate")


@dataclass(frozen=True)
class Group:
    """One program's group, and all that it starts."""

    directory: Path

    @property
    def entrance(self) -> Path:
        """The file to which a process writes 0 to get in; whoever opened it must have been allowed to."""
        return self.directory / "cgroup.procs"

    def memory(self) -> int:
        """Return the bytes in use now, without the pages of files, which the kernel takes back before it kills."""
        figures = _figures(self.directory / "memory.stat")
        return figures.get("anon", 0) + figures.get("shmem", 0)

    def peak(self) -> int:
        """Return the most bytes that were ever in use, pages of files included; 0 where Linux is older than 5.19."""
        return int(_read(self.directory / "memory.peak") or 0)

    def outgrown(self) -> bool:
        """Tell whether the kernel has killed it because it wanted more memory than its group has."""
        events = self._events()
        return bool(events.get("oom_kill") and events.get("oom"))

    def starved(self) -> bool:
        """Tell whether the kernel has killed it though it kept within its own limit, for there was no more memory."""
        events = self._events()
        return bool(events.get("oom_kill") and not events.get("oom"))

    def _events(self) -> dict[str, int]:
        return _figures(self.directory / "memory.events.local")


def base() -> Path | None:
    """Return the group below which those of experiments would be: the runner's own; None where there is no such."""
    own = cgroups.own()
    if own is None or os.getpid() not in _processes(own):
        return None
    return own.parent if own.name == _LEAF else own


def obstacle() -> str:
    """Say why experiments cannot have groups here, "" when they can. Nothing is changed."""
    where = base()
    return next(_obstacles(where), "") if where else "there are no control groups of version 2"


def prepare() -> str:
    """Make ready for groups, and sweep what killed attempts have left; return why there will be none, else "".

    To be called before any other process is started. Moves this one, and who started it if that is in the same group.
    """
    where, reason = base(), obstacle()
    if reason or where is None:
        return reason
    try:
        (where / _LEAF).mkdir(exist_ok=True)
        for pid in _to_move(where):
            _write(where / _LEAF / "cgroup.procs", str(pid))
        _write(where / "cgroup.subtree_control", " ".join(f"+{name}" for name in sorted(_CONTROLLERS)))
    except OSError as error:
        return f"{error.filename}: {error.strerror}"
    sweep()
    return ""


@contextmanager
def group(*, memory: int, processes: int) -> Iterator[Group | None]:
    """Make this attempt's group, in which there is so much memory (bytes) and so many processes and threads; 0: any.

    None where there can be none. Whatever is in it at the end is killed.
    """
    made = _make(memory, processes)
    try:
        yield made
    finally:
        if made:
            _remove(made.directory)


def sweep() -> None:
    """Kill what is left in groups of dead attempts, and remove those."""
    where = _prepared()
    groups = list(where.glob(f"{_PREFIX}*")) if where else []
    if groups:
        living = set(map(procfs.birth, procfs.everybody()))
        for directory in groups:
            if directory.name.removeprefix(_PREFIX) not in living:
                _remove(directory)


def _make(memory: int, processes: int) -> Group | None:
    where = _prepared()
    if where is None:
        return None
    made = Group(where / f"{_PREFIX}{procfs.birth(os.getpid())}")
    try:
        made.directory.mkdir()
        _write(made.directory / "memory.oom.group", "1")
        if memory:
            _write(made.directory / "memory.max", str(memory))
            if (made.directory / "memory.swap.max").exists():
                _write(made.directory / "memory.swap.max", "0")
        if processes:
            _write(made.directory / "pids.max", str(processes))
    except OSError as error:
        log.warning("the experiment's memory is only measured: %s: %s", error.filename, error.strerror)
        if made.directory.exists():
            _remove(made.directory)
        return None
    return made


def _remove(directory: Path, patience: float = 5.0) -> None:
    """Kill all in a group and those below it, and remove them; it stays when something is stuck in the kernel."""
    end = time.monotonic() + patience
    while directory.exists():
        try:
            _write(directory / "cgroup.kill", "1")
            for each, _, _ in os.walk(directory, topdown=False):
                Path(each).rmdir()
        except OSError as error:
            if time.monotonic() >= end:
                log.warning("the control group %s cannot be removed: %s", directory, error.strerror)
                return
            time.sleep(0.01)


def _obstacles(where: Path) -> Iterator[str]:
    if missing := _CONTROLLERS - _words(where / "cgroup.controllers"):
        yield f"{where} lacks the controllers {' and '.join(sorted(missing))}"
    if not _given(where):
        yield f"{where} is not delegated to the runner"
    if not all(os.access(where / name, os.W_OK) for name in ("", "cgroup.procs", "cgroup.subtree_control")):
        yield f"{where} may not be written"
    if not _is_root(where) and not (where / "cgroup.kill").exists():
        yield "Linux is older than 5.14"
    if others := set(_to_move(where)) - {os.getpid(), *procfs.ancestors(os.getpid())}:
        yield f"other processes are in {where}, too ({', '.join(map(str, sorted(others)))})"


def _prepared() -> Path | None:
    """Return the base where ``prepare`` was successful, in this process or in the one that started it."""
    own = cgroups.own()
    if own is None or own.name != _LEAF:
        return None
    return own.parent if _words(own.parent / "cgroup.subtree_control") >= _CONTROLLERS else None


def _given(where: Path) -> bool:
    """Tell whether a group is this user's to divide.

    It is when nothing of the hierarchy is seen above it, when systemd says so, or when that above is another user's.
    """
    if os.path.ismount(where) or any(_mark(where, name) == b"1" for name in _MARKS):
        return True
    return where.stat().st_uid == os.geteuid() != where.parent.stat().st_uid


def _mark(where: Path, name: str) -> bytes:
    try:
        return os.getxattr(where, name)
    except OSError:
        return b""


def _to_move(where: Path) -> list[int]:
    """List the processes that have to leave a group; the kernel's root may keep those that are not ours."""
    return [os.getpid()] if _is_root(where) else _processes(where)


def _is_root(where: Path) -> bool:
    return not (where / "cgroup.type").exists()


def _processes(where: Path) -> list[int]:
    return [int(word) for word in _read(where / "cgroup.procs").split()]


def _words(path: Path) -> set[str]:
    return set(_read(path).split())


def _figures(path: Path) -> dict[str, int]:
    """Return the figures of a file that has lines like ``anon 4096``."""
    pairs = (line.split() for line in _read(path).splitlines())
    return {name: int(value) for name, value in pairs}


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _write(path: Path, text: str) -> None:
    """Write to a file of the kernel's. Raises OSError, which names the file."""
    try:
        path.write_text(text)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
