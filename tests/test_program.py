"""A program of an attempt, run to its end."""

from __future__ import annotations

import os
import subprocess
from contextlib import closing
from datetime import datetime, timezone
from pathlib import Path

from runner.attempt.console import Console
from runner.attempt.metadata import Document
from runner.attempt.program import Programs
from runner.attempt.watch import Watch
from runner.lifecycle import Signals
from runner.loop import Loop
from runner.machine.process import Confines

# What Linux keeps in a pipe, and what is read of one at a time, in bytes.
PIPE = 65536


def test_a_program_is_over_when_it_has_ended_however_much_others_write_to_its_output(tmp_path: Path) -> None:
    """Another attempt's experiment, of the same user, can open the pipe."""
    document, started = Document(schema_logs=True), []
    after_the_end = 0

    def write_on(pid: int) -> None:
        started.append(pid)
        # In the background of a shell that ends, they are nobody's: they end when nobody reads any more.
        subprocess.run(["sh", "-c", f"for i in 1 2 3; do yes >/proc/{pid}/fd/1 2>/dev/null & done"], check=True)

    def hear(line: str, _stream: str) -> None:
        nonlocal after_the_end
        document.feed(line, datetime.now(timezone.utc))
        after_the_end += 0 if Path(f"/proc/{started[0]}").exists() else len(line) + 1
        assert after_the_end <= 2 * PIPE

    reader, writer = os.pipe()
    try:
        with closing(Loop()) as loop, Signals() as signals, Console(tmp_path / "log", hear, most=1) as console:
            programs = Programs(loop, Watch(loop, signals, reader), console, confines=Confines())
            assert programs.run(["/bin/sleep", "0.2"], {}, tmp_path, started=write_on) == 0
    finally:
        for end in (reader, writer):
            os.close(end)
