"""The supervisor's end of one attempt: a process that is given an order and tells events (see ``events.py``)."""

from __future__ import annotations

import dataclasses
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from runner import events
from runner.errors import MachineError
from runner.events import Event, Finished
from runner.log import variables
from runner.loop import Loop
from runner.machine.process import signal_group
from runner.options.reading import variables_of
from runner.options.settings import Settings
from runner.order import GpuState, Order
from runner.secrets.redaction import secrets_of_variable

log = logging.getLogger(__name__)


class Child:
    """The process of one attempt, started ahead of its order so that its imports are done when the order comes.

    ``tell`` is called with each event, in the loop. ``keep`` are variables that a message may read, however secret they
    are. Raises MachineError when it cannot be started.
    """

    def __init__(self, loop: Loop, keep: Collection[str] = ()) -> None:
        self._loop = loop
        self._partial = b""
        self._unsent = b""
        self.tell: Callable[[Event], None] = lambda _event: None
        self.finished: Finished | None = None
        self.place = ""
        self.experiment = 0
        try:
            self._process, self._events = _spawn(_environment(keep))
        except OSError as error:
            raise MachineError(f"the process of an attempt cannot be started: {error.strerror}") from error
        os.set_blocking(self._events, False)
        loop.add_handler(self._events, self._readable, loop.READ)

    @property
    def pid(self) -> int:
        """The attempt's process id, which is its process group's too."""
        return self._process.pid

    def begin(self, order: Order) -> None:
        """Hand over the order, once; the loop sends what the pipe does not take at once."""
        os.set_blocking(self._orders, False)
        self._say(order.to_line())

    def tell_gpus(self, state: GpuState) -> None:
        """Tell the attempt, which has its order, how its GPUs are."""
        self._say(state.to_line())

    def _say(self, line: bytes) -> None:
        waiting = bool(self._unsent)
        self._unsent += line
        if not waiting:
            self._send()
            if self._unsent:
                self._loop.add_handler(self._orders, lambda *_: self._send(), self._loop.WRITE)

    @property
    def _orders(self) -> int:
        assert self._process.stdin is not None  # noqa: S101 -- opened above
        return self._process.stdin.fileno()

    def _send(self) -> None:
        try:
            while self._unsent:
                self._unsent = self._unsent[os.write(self._orders, self._unsent) :]
        except BlockingIOError:
            return
        except BrokenPipeError:
            self._unsent = b""  # it died: its exit status will say so
        self._loop.remove_handler(self._orders)

    def _readable(self, fd: int, _events: int) -> None:
        try:
            while data := os.read(fd, 65536):
                *lines, self._partial = (self._partial + data).split(b"\n")
                for line in lines:
                    self._heard(line)
        except BlockingIOError:
            return
        self._loop.remove_handler(fd)

    def _heard(self, line: bytes) -> None:
        try:
            event = events.from_line(line)
        except events.ContractError as error:
            log.error("%s", error)
            return
        if isinstance(event, Finished):
            self.finished = event
        elif isinstance(event, events.Placed):
            self.place = event.name
        elif isinstance(event, events.Started):
            self.experiment = event.pid
        elif isinstance(event, events.Phase) and event.name == "return":
            self.experiment = 0  # it is over, and its number soon another's, while its results are stored for hours
        self.tell(event)

    def ended(self) -> int | None:
        """Return the exit status (negative: the signal) once the process is gone and all its events are told."""
        status = self._process.poll()
        if status is not None:
            self._readable(self._events, 0)
        return status

    def stop(self) -> None:
        """Ask the attempt to end its experiment, store the results and go."""
        signal_group(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        """End the attempt and its experiment now."""
        for leader in (self.pid, self.experiment):
            if leader:
                signal_group(leader, signal.SIGKILL)

    def close(self) -> None:
        """Let go of the pipes; a process that was never given an order ends by itself then. To be called once."""
        for fd in (self._events, self._orders):
            self._loop.remove_handler(fd)
        os.close(self._events)
        assert self._process.stdin is not None  # noqa: S101 -- opened above
        self._process.stdin.close()

    def wait(self, seconds: float) -> None:
        """Wait for the end of a process that has been closed or killed; kill it when it takes longer."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            self._process.wait()


def _spawn(env: Mapping[str, str]) -> tuple[subprocess.Popen[bytes], int]:
    """Start the process; return it, and the descriptor that its events come from."""
    reader, writer = os.pipe()
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "runner", "attempt", str(writer)],
            stdin=subprocess.PIPE,
            env=env,
            cwd="/",  # which "-m" puts on the module path: nothing there must shadow a module
            pass_fds=(writer,),
            start_new_session=True,
            bufsize=0,
        )
    except OSError:
        os.close(reader)
        raise
    finally:
        os.close(writer)
    return process, reader


def _environment(keep: Collection[str]) -> dict[str, str]:
    """The supervisor's environment without its secrets, and with the way to this very package.

    Options hold secrets, what AWS's credential chain reads leads to those of SQS queues, and the names of others say
    so. What installers need of them comes with the order.
    """
    secret = {name for field in dataclasses.fields(Settings) for name in variables_of(field)}
    secret |= {name for name in os.environ if name.startswith("AWS_")}
    secret |= {name for name, value in os.environ.items() if secrets_of_variable(name, value)}
    kept = {name: value for name, value in os.environ.items() if name not in secret - set(keep)}
    return {**kept, "PYTHONPATH": str(Path(__file__).resolve().parents[2]), **variables()}
