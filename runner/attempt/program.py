"""Running one program of an attempt to its end, its output going to the console."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from runner.attempt.console import STDERR, STDOUT, Console
from runner.attempt.watch import Orphaned, Watch
from runner.errors import ExperimentError, MachineError, RunnerError
from runner.loop import Loop
from runner.machine import process
from runner.machine.delegated import Group

# How long a program may take to end after SIGTERM before it is killed. In seconds.
TERM_GRACE = 10.0


class Programs:
    """Starts programs; see sandbox.base.Run. Nothing that a program started is left when it has ended.

    ``apart``: the console is to know what comes on stderr, at the cost of the exact order.
    """

    def __init__(
        self, loop: Loop, watch: Watch, console: Console, *, apart: bool = False, confines: process.Confines
    ) -> None:
        self._loop, self._watch, self._console = loop, watch, console
        self._apart, self._confines = apart, confines

    def run(
        self,
        argv: Sequence[str],
        env: Mapping[str, str],
        cwd: Path,
        *,
        started: Callable[[int], None] | None = None,
        largest_file: int = 0,
        group: Group | None = None,
    ) -> int:
        """Run to the end, and return the exit status, negative for a signal.

        ``started`` is called with the process id. No file may get larger than ``largest_file`` bytes (0: any size);
        all is in ``group``, if there is one.
        Raises MachineError when it cannot be started, and what the watch raises, after the program and all that it
        started have been stopped.
        """
        confines = replace(self._confines, largest_file=largest_file, group=group)
        try:
            child = process.start(argv, env=env, cwd=cwd, apart=self._apart, confines=confines)
        except OSError as error:
            if error.errno == errno.E2BIG:
                raise ExperimentError(
                    "its arguments and environment together are larger than the system takes"
                ) from error
            raise MachineError(f"{argv[0]} cannot be started: {error.strerror}") from error
        with self._output(child), self._ended(child):
            if started:
                started(child.pid)
            while child.poll() is None:
                self._watch.serve()
        return child.returncode

    @contextmanager
    def _ended(self, child: subprocess.Popen[bytes]) -> Iterator[None]:
        """Leave no process behind; one that has to be stopped is asked to end first."""
        try:
            yield
        except Orphaned:
            raise
        except RunnerError:
            process.signal_group(child.pid, signal.SIGTERM)
            end = time.monotonic() + TERM_GRACE
            while child.poll() is None and time.monotonic() < end:
                self._loop.run_once(end - time.monotonic())
            raise
        finally:
            process.signal_group(child.pid, signal.SIGKILL)
            child.wait()
            process.kill_descendants()

    @contextmanager
    def _output(self, child: subprocess.Popen[bytes]) -> Iterator[None]:
        """Feed a child's output to the console while the loop runs, and what is left of it afterwards."""
        with ExitStack() as stack:
            for pipe, stream in ((child.stdout, STDOUT), (child.stderr, STDERR)):
                if pipe is not None:
                    stack.enter_context(pipe)
                    stack.enter_context(self._piped(pipe.fileno(), stream))
            yield

    @contextmanager
    def _piped(self, fd: int, stream: str) -> Iterator[None]:
        def readable(_fd: int, _events: int) -> None:
            data = _read(fd)
            if data:
                self._console.feed(data, stream)
            elif data is not None:
                self._loop.remove_handler(fd)

        os.set_blocking(fd, False)
        self._loop.add_handler(fd, readable, self._loop.READ)
        try:
            yield
        finally:
            self._loop.remove_handler(fd)
            # All of ours that could write is dead by now; others may have been handed the pipe, and go on for ever.
            left = fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ)
            while left > 0 and (data := _read(fd)):
                self._console.feed(data, stream)
                left -= len(data)


def _read(fd: int) -> bytes | None:
    """Return what there is, b"" at the end, None when there is nothing just now."""
    try:
        return os.read(fd, 65536)
    except BlockingIOError:
        return None
