"""A program of an attempt, run to its end."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from threading import Timer

# What Linux keeps in a pipe, and what is read of one at a time, in bytes.
PIPE = 65536

# It says which process its program is, waits, and prints how much it was told after that had ended.
ATTEMPT = """
import os, sys
from contextlib import closing
from datetime import datetime, timezone
from pathlib import Path
from runner.attempt.console import Console
from runner.attempt.metadata import Document
from runner.attempt.program import Programs
from runner.attempt.watch import Watch
from runner.lifecycle import Signals
from runner.loop import Loop
from runner.machine import process

document, started, after_the_end = Document(schema_logs=True), [], 0

def wait(pid):
    started.append(pid)
    print(pid, flush=True)
    sys.stdin.readline()

def hear(line, _stream):
    global after_the_end
    document.feed(line, datetime.now(timezone.utc))
    after_the_end += 0 if Path(f"/proc/{started[0]}").exists() else len(line) + 1

process.adopt_orphans()
place, (reader, _writer) = Path(sys.argv[1]), os.pipe()
with closing(Loop()) as loop, Signals() as signals, Console(place / "log", hear, most=1) as console:
    programs = Programs(loop, Watch(loop, signals, reader), console, confines=process.Confines())
    assert programs.run(["/bin/sleep", "0.2"], {}, place, started=wait) == 0
print(after_the_end, flush=True)
"""


def test_a_program_is_over_when_it_has_ended_however_much_others_write_to_its_output(tmp_path: Path) -> None:
    """Another attempt's experiment, of the same user, can open the pipe."""
    root = Path(__file__).parent.parent
    with ExitStack() as stack:
        attempt = stack.enter_context(
            subprocess.Popen(
                [sys.executable, "-c", ATTEMPT, str(tmp_path)],
                env={**os.environ, "PYTHONPATH": str(root)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        )
        stack.callback(attempt.kill)
        limit = Timer(30, attempt.kill)
        limit.start()
        stack.callback(limit.cancel)
        assert attempt.stdin
        assert attempt.stdout
        output = Path(f"/proc/{attempt.stdout.readline().strip()}/fd/1")
        with output.open("wb") as pipe:
            for _ in range(3):
                stack.callback(subprocess.Popen(["yes"], stdout=pipe).wait)  # they end when nobody reads any more
        attempt.stdin.write("\n")
        attempt.stdin.flush()
        assert int(attempt.stdout.readline()) <= 2 * PIPE
