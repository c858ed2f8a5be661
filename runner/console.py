"""The experiment's log, ``output/output``: every byte of the attempt's output, and each line to whoever wants lines."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from runner.errors import MachineError

# A longer line is handed on in pieces, so that output without line ends cannot fill the memory. In bytes.
LONGEST_LINE = 1024 * 1024


class Console:
    """Appends output to a file and splits it into lines, without their ends, bad UTF-8 replaced.

    Each whole line goes to ``hear``. Close it, or use it as a context manager: that hands on a last line without end.
    """

    def __init__(self, path: Path, hear: Callable[[str], None]) -> None:
        self._hear = hear
        self._partial = bytearray()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab", buffering=0)

    def feed(self, data: bytes) -> None:
        """Take what was read of a process. Raises MachineError when the disk does not."""
        try:
            self._file.write(data)
        except OSError as error:
            raise MachineError(f"the experiment's log cannot be written: {error}") from error
        *lines, rest = data.split(b"\n")
        for line in lines:
            self._partial += line
            self._flush()
        self._partial += rest
        if len(self._partial) >= LONGEST_LINE:
            self._flush()

    def say(self, sentence: str) -> None:
        """Write a line of the runner's own, on a line of its own."""
        if self._partial:
            self.feed(b"\n")
        self.feed(f"studio-runner: {sentence}\n".encode())

    def _flush(self) -> None:
        line = bytes(self._partial).rstrip(b"\r")
        self._partial.clear()
        self._hear(line.decode("utf-8", "replace"))

    def close(self) -> None:
        """Hand on what is left, and close the file."""
        if self._partial:
            self._flush()
        self._file.close()

    def __enter__(self) -> Console:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
