"""The experiment's log, ``output/output``: the bytes of the attempt's output, and each line to whoever wants lines."""

from __future__ import annotations

import os
import re
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from runner.errors import ExperimentError, MachineError, is_machines_own
from runner.secrets.masking import NONE, Secrets, Stream
from runner.units import format_size

STDOUT, STDERR = "stdout", "stderr"
STANDARD_OUTPUT, STANDARD_ERROR = 1, 2
"""The descriptors of our own."""

# A longer line is handed on in pieces, so that output without line ends cannot fill the memory. In bytes.
LONGEST_LINE = 1024 * 1024
# A line that is overwritten again and again, as a progress bar is, is heard this often meanwhile. In seconds.
_BAR_PACE = 10.0
# What is remembered to find a traceback in: lines, and characters of each.
_REMEMBERED, _REMEMBERED_LENGTH = 400, 400
_TRACEBACK = "Traceback (most recent call last):"
# "ValueError: no", "torch.cuda.OutOfMemoryError: …", "KeyboardInterrupt"
_EXCEPTION = re.compile(r"[A-Za-z_][\w.]*(Error|Exception|Interrupt|Exit|Warning)\b")


class Console:
    """Appends output to a file and splits it into lines, without their ends, bad UTF-8 replaced.

    Each whole line goes to ``hear``, with the stream it came on, ``STDOUT`` or ``STDERR``: of a line that a carriage
    return has overwritten what a terminal would show. In file and lines, ``secrets`` are masked. ``most``: how many
    bytes of output the file takes (0: any); lines are heard beyond that. ``echo``: a descriptor that all output is
    written to as well; whoever reads it may go away. ``clock`` gives monotonic seconds. Close it, or use it as a
    context manager: that hands on last lines without end. Raises ExperimentError where an artifact keeps it from being
    written, MachineError where the disk does.
    """

    def __init__(
        self,
        path: Path,
        hear: Callable[[str, str], None],
        *,
        most: int = 0,
        secrets: Secrets = NONE,
        echo: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._hear, self._most, self._echo, self._clock = hear, most, echo, clock
        self._secrets = secrets
        self._streams = {STDOUT: Stream(secrets), STDERR: Stream(secrets)}
        self._kept = 0
        self._partial = {STDOUT: bytearray(), STDERR: bytearray()}
        self._bar_heard = 0.0
        self._tail: deque[str] = deque(maxlen=_REMEMBERED)
        self.fed = 0
        """How many bytes of output there were."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            if is_machines_own(error):
                raise MachineError(f"the experiment's log cannot be written: {error}") from error
            raise ExperimentError(
                f"the artifact {path.parent.name!r} has something else in the place of the log: {error.strerror}",
                verdict="artifact",
            ) from error

    def feed(self, data: bytes, stream: str = STDOUT) -> None:
        """Take what was read of a stream. Raises MachineError when the disk does not."""
        self.fed += len(data)
        self._take(self._streams[stream].feed(data), stream)

    def _take(self, data: bytes, stream: str) -> None:
        self._keep(data)
        self._split(data, stream)

    def say(self, sentence: str) -> None:
        """Write a line of the runner's own."""
        self.write(f"studio-runner: {sentence}", shown=True)

    def write(self, line: str, *, shown: bool = False) -> None:
        """Write a line on a line of its own, however much there is already; ``shown``: also where output is echoed."""
        for stream, partial in self._partial.items():
            self._take(self._streams[stream].flush(), stream)
            if partial:
                self._append(b"\n")
                self._show(b"\n")
                self._split(b"\n", stream)
        data = self._secrets.mask(f"{line}\n".encode(errors="replace"))
        self._append(data)
        if shown:
            self._show(data)
        self._split(data, STDOUT)

    @property
    def exception(self) -> str:
        """What the last traceback in the output came to, "" if there was none."""
        lines = list(self._tail)
        starts = [number for number, line in enumerate(lines) if line.startswith(_TRACEBACK)]
        after = lines[starts[-1] + 1 :] if starts else lines
        named = [line for line in after if _EXCEPTION.match(line)]
        if starts:
            # An exception may have any name; the lines of a traceback are indented.
            return next((line for line in after if line.strip() and not line.startswith(" ")), "")
        return named[-1] if named else ""

    def _keep(self, data: bytes) -> None:
        self._show(data)
        before, self._kept = self._kept, self._kept + len(data)
        if not self._most or self._kept <= self._most:
            self._append(data)
        elif before <= self._most:
            self._append(data[: self._most - before])
            self._append(
                f"\nstudio-runner: there is more output than --max-output {format_size(self._most)}: "
                "what follows is not kept here\n".encode()
            )

    def _show(self, data: bytes) -> None:
        rest = memoryview(data)
        try:
            while rest and self._echo is not None:
                rest = rest[os.write(self._echo, rest) :]
        except OSError:
            self._echo = None  # whoever looked at it has gone away

    def _append(self, data: bytes) -> None:
        try:
            self._file.write(data)
        except OSError as error:
            raise MachineError(f"the experiment's log cannot be written: {error}") from error

    def _split(self, data: bytes, stream: str) -> None:
        partial = self._partial[stream]
        *lines, rest = data.split(b"\n")
        for line in lines:
            partial += line
            self._flush(stream)
        partial += rest
        if len(partial) >= LONGEST_LINE:
            self._flush(stream)
        elif b"\r" in partial.rstrip(b"\r") and self._clock() >= self._bar_heard + _BAR_PACE:
            self._bar_heard = self._clock()
            self._hear(_shown(partial), stream)

    def _flush(self, stream: str) -> None:
        line = _shown(self._partial[stream])
        self._partial[stream].clear()
        self._tail.append(line[:_REMEMBERED_LENGTH])
        self._hear(line, stream)

    def close(self) -> None:
        """Hand on what is left, and close the file."""
        for stream, partial in self._partial.items():
            self._take(self._streams[stream].flush(), stream)
            if partial:
                self._flush(stream)
        self._file.close()

    def __enter__(self) -> Console:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _shown(line: bytearray) -> str:
    """Return what a terminal would show of a line, roughly: what stands behind its last carriage return but one."""
    return bytes(line).rstrip(b"\r").rpartition(b"\r")[2].decode("utf-8", "replace")
