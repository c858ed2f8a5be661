"""Processes that may be anything: started in a group of their own, and gone with all their descendants afterwards."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_libc = ctypes.CDLL(None, use_errno=True)


def adopt_orphans() -> None:
    """Make this process the parent of every descendant whose own parent dies, so that none of them escapes."""
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _die_with_parent() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def start(argv: Sequence[str], *, env: Mapping[str, str], cwd: Path, apart: bool = False) -> subprocess.Popen[bytes]:
    """Start a program in a session of its own, stdout and stderr on one pipe (``.stdout``) in the order written.

    ``apart``: on a pipe each, and so in an order that is only about that in which they were written. The program gets
    no standard input, and is killed when this process is. Raises OSError when it cannot be started.
    """
    return subprocess.Popen(
        argv,
        env=env,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE if apart else subprocess.STDOUT,
        bufsize=0,
        start_new_session=True,
        # Threads of ours may hold locks meanwhile, but none that this function takes.
        preexec_fn=_die_with_parent,  # noqa: PLW1509
    )


def signal_group(pid: int, number: signal.Signals) -> None:
    """Send a signal to the process group that ``pid`` leads, if there is still one."""
    try:
        os.killpg(pid, number)
    except (ProcessLookupError, PermissionError):
        return


def kill_descendants(patience: float = 5.0) -> None:
    """Kill and reap every descendant of this process; ``adopt_orphans`` must have been called before they were started.

    Killing goes on until there is none left, since a process may fork faster than a list of it is read; after
    ``patience`` seconds (a process stuck in the kernel) it gives up.
    """
    end = time.monotonic() + patience
    while time.monotonic() < end:
        for pid in descendants(os.getpid()):
            _kill(pid)
        if not _reap():
            return
        time.sleep(0.005)


def _reap() -> bool:
    """Collect what has died; True while there are children left."""
    try:
        while os.waitpid(-1, os.WNOHANG) != (0, 0):
            pass
    except ChildProcessError:
        return False
    return True


def descendants(root: int) -> list[int]:
    """List the processes below ``root``, children before grandchildren."""
    children: dict[int, list[int]] = {}
    for pid in _all_processes():
        children.setdefault(_parent(pid), []).append(pid)
    found = list(children.get(root, ()))
    for pid in found:  # grows while it is walked
        found.extend(children.get(pid, ()))
    return found


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
    return f"{pid}-{int(status[19])}" if status and status[0] not in (b"Z", b"X") else ""


def kill_marked(*variables: str) -> int:
    """Kill every process whose environment holds all these ``NAME=value``; return how many.

    For what a killed attempt left behind: its processes carry its name in ``STUDIOML_EXPERIMENT``.
    """
    marks = {os.fsencode(variable) for variable in variables}
    marked = [pid for pid in _all_processes() if marks <= _environment(pid)]
    for pid in marked:
        _kill(pid)
    return len(marked)


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return


def _all_processes() -> list[int]:
    own = os.getpid()
    return [int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) != own]


def _parent(pid: int) -> int:
    status = _status(pid)
    return int(status[1]) if status else -1


def _status(pid: int) -> list[bytes]:
    """Return the fields of /proc/PID/stat (proc(5)) from the third one, the state, on; [] when there is no process."""
    try:
        # "pid (name) state ppid …": the name may hold anything, so look behind its last parenthesis.
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return []


def _environment(pid: int) -> set[bytes]:
    try:
        return set(Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"))
    except OSError:
        return set()
