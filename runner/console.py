"""The experiment's log, ``output/output``: every byte of the attempt's output, and each line to whoever wants lines."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from runner.errors import MachineError

STDOUT, STDERR = "stdout", "stderr"

# A longer line is handed on in pieces, so that output without line ends cannot fill the memory. In bytes.
LONGEST_LINE = 1024 * 1024


class Console:
    """Appends output to a file and splits it into lines, without their ends, bad UTF-8 replaced.

    Each whole line goes to ``hear``, with the stream it came on, ``STDOUT`` or ``STDERR``. Close it, or use it as a
    context manager: that hands on last lines without end.
    """

    def __init__(self, path: Path, hear: Callable[[str, str], None]) -> None:
        self._hear = hear
        self._partial = {STDOUT: bytearray(), STDERR: bytearray()}
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab", buffering=0)

    def feed(self, data: bytes, stream: str = STDOUT) -> None:
        """Take what was read of a stream. Raises MachineError when the disk does not."""
        try:
            self._file.write(data)
        except OSError as error:
            raise MachineError(f"the experiment's log cannot be written: {error}") from error
        partial = self._partial[stream]
        *lines, rest = data.split(b"\n")
        for line in lines:
            partial += line
            self._flush(stream)
        partial += rest
        if len(partial) >= LONGEST_LINE:
            self._flush(stream)

    def say(self, sentence: str) -> None:
        """Write a line of the runner's own, on a line of its own."""
        for stream, partial in self._partial.items():
            if partial:
                self.feed(b"\n", stream)
        self.feed(f"studio-runner: {sentence}\n".encode())

    def _flush(self, stream: str) -> None:
        line = bytes(self._partial[stream]).rstrip(b"\r")
        self._partial[stream].clear()
        self._hear(line.decode("utf-8", "replace"), stream)

    def close(self) -> None:
        """Hand on what is left, and close the file."""
        for stream, partial in self._partial.items():
            if partial:
                self._flush(stream)
        self._file.close()

    def __enter__(self) -> Console:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
