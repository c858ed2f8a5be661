"""Processes that may be anything: started in a group of their own, and gone with all their descendants afterwards."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from runner.machine import procfs
from runner.machine.delegated import Group
from runner.machine.users import User

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER, _PR_GET_CHILD_SUBREAPER = 36, 37
# The kernel's score of what to kill when there is no memory left, from -1000 to 1000; the runner's own is 0.
_DIES_FIRST = "500"
_libc = ctypes.CDLL(None, use_errno=True)


def adopt_orphans() -> None:
    """Make this process the parent of every descendant whose own parent dies, so that none of them escapes."""
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


@dataclass(frozen=True)
class Confines:
    """What holds for a program and all that it starts.

    ``nice`` is added to its niceness; no file of its may be larger than ``largest_file`` bytes, a ``user`` other than
    ours has no more than so many ``processes`` (0: any number), unless a ``group`` counts them.
    """

    nice: int = 0
    largest_file: int = 0
    processes: int = 0
    user: User | None = None
    group: Group | None = None


def _confine(confines: Confines, entrance: int | None) -> None:
    if entrance is not None:
        os.write(entrance, b"0")
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if confines.largest_file:
        resource.setrlimit(resource.RLIMIT_FSIZE, (confines.largest_file, confines.largest_file))
    if confines.nice:
        os.nice(confines.nice)
    if confines.user and confines.processes and not confines.group:  # nobody counts those of root
        resource.setrlimit(resource.RLIMIT_NPROC, (confines.processes, confines.processes))


def start(
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    cwd: Path,
    apart: bool = False,
    confines: Confines = Confines(),
) -> subprocess.Popen[bytes]:
    """Start a program in a session of its own, stdout and stderr on one pipe (``.stdout``) in the order written.

    ``apart``: on a pipe each, and so in an order that is only about that in which they were written. The program gets
    no standard input, is killed when this process is, and leaves no core dumps; when memory runs out it dies before
    the runner does. Raises OSError when it cannot be started.
    """
    user = confines.user
    with ExitStack() as stack:
        # Opened here, where we may: the program may be another user's already when it goes in, before its first step.
        entrance = stack.enter_context(confines.group.entrance.open("wb", 0)).fileno() if confines.group else None
        child = subprocess.Popen(
            argv,
            env=env,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if apart else subprocess.STDOUT,
            bufsize=0,
            start_new_session=True,
            user=user.uid if user else None,
            group=user.gid if user else None,
            extra_groups=user.groups if user else None,
            # Threads of ours may hold locks meanwhile, but none that this function takes.
            preexec_fn=partial(_confine, confines, entrance),  # noqa: PLW1509
        )
    with suppress(OSError):
        Path(f"/proc/{child.pid}/oom_score_adj").write_text(_DIES_FIRST)
    return child


def signal_group(pid: int, number: signal.Signals) -> None:
    """Send a signal to the process group that ``pid`` leads, if there is still one."""
    try:
        os.killpg(pid, number)
    except (ProcessLookupError, PermissionError):
        return


def kill_descendants(patience: float = 5.0) -> None:
    """Kill and reap every descendant of this process, which must have called ``adopt_orphans`` before it had any.

    Killing goes on until there is none left, since a process may fork faster than a list of it is read; after
    ``patience`` seconds (a process stuck in the kernel) it gives up. Raises RuntimeError in any other process: it may
    have started what is not to be killed.
    """
    adopting = ctypes.c_int()
    _libc.prctl(_PR_GET_CHILD_SUBREAPER, ctypes.byref(adopting), 0, 0, 0)
    if not adopting.value:
        raise RuntimeError("only who adopts orphans may kill all that it has started")
    end = time.monotonic() + patience
    while time.monotonic() < end:
        for pid in procfs.descendants(os.getpid()):
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


def kill_marked(*variables: str) -> int:
    """Kill every process whose environment holds all these ``NAME=value``; return how many.

    For what a killed attempt left behind: its processes carry its name in ``STUDIOML_EXPERIMENT``.
    """
    marks = {os.fsencode(variable) for variable in variables}
    marked = [pid for pid in procfs.everybody() if marks <= procfs.environment(pid)]
    for pid in marked:
        _kill(pid)
    return len(marked)


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return
