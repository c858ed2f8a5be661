"""The long run: ``python -m tests.fuzz [--inputs N] [--seconds S] [--seed S] [HARNESS...]``; ``make fuzz`` calls it.

Whatever crashes, hangs or needs too much memory is written to a file whose name is printed.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

from tests.fuzz.harnesses import HARNESSES, Harness

# Of one input: seconds of processor time, and of the clock, for whoever waits for something that does not come.
_LONGEST, _LONGEST_WAIT = 1.0, 10.0
# Of the process, in MiB.
_MOST_MEMORY = 300
_FOUND = Path(__file__).parent / "found"
_MOST_FOUND = 10


class Hang(BaseException):
    """An input takes too long."""


def main() -> int:
    """Run all harnesses that are named, one after the other; 1 when something was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("names", nargs="*", choices=[[], *HARNESSES], metavar="HARNESS", help=", ".join(HARNESSES))
    parser.add_argument("--inputs", type=int, default=2_000_000, help="for each harness [%(default)s]")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="for each harness, at most")
    parser.add_argument("--seed", type=int, default=1, help="of the random numbers [%(default)s]")
    options = parser.parse_args()
    random = Random(options.seed)
    os.environ.clear()  # proxies are looked for in it, by every request
    return max(_run(name, random, options.inputs, options.seconds) for name in options.names or HARNESSES)


def _run(name: str, random: Random, inputs: int, seconds: float) -> int:
    """Run one harness, and say how it went."""
    harness, begun = HARNESSES[name], time.monotonic()
    count, slowest, found = 0, 0.0, set()
    with harness.around():
        for data in harness.mutator.inputs(random):
            before = time.process_time()
            trouble = _trouble(harness, data)
            slowest = max(slowest, time.process_time() - before)
            count += 1
            if trouble and trouble not in found:
                found.add(trouble)
                print(f"{name}: {_keep(name, data)}\n{trouble}", flush=True)
            if count >= inputs or time.monotonic() - begun >= seconds or len(found) >= _MOST_FOUND:
                break
    took = time.monotonic() - begun
    print(
        f"{name}: {count} inputs in {took:.0f} s ({count / took:.0f}/s), {len(found)} kinds of trouble, "
        f"slowest {slowest:.2f} s, memory at most {_memory()} MiB",
        flush=True,
    )
    return bool(found)


def _trouble(harness: Harness, data: bytes) -> str:
    """Return where and what went wrong, "" when nothing did."""
    try:
        with _limits():
            harness.check(data)
    except (Exception, Hang) as error:  # noqa: BLE001 # whatever it is, it is what is looked for
        *_, last = traceback.extract_tb(error.__traceback__)
        return f"  {type(error).__name__}: {str(error)[:300]} in {last.filename}, line {last.lineno}"
    if _memory() > _MOST_MEMORY:
        return f"  more than {_MOST_MEMORY} MiB"
    return ""


@contextmanager
def _limits() -> Iterator[None]:
    signal.setitimer(signal.ITIMER_PROF, _LONGEST)
    signal.setitimer(signal.ITIMER_REAL, _LONGEST_WAIT)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)


def _hang(*_: object) -> None:
    raise Hang


def _memory() -> int:
    """Return the most that this process ever used, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def _keep(name: str, data: bytes) -> Path:
    path = _FOUND / f"{name}-{hashlib.sha256(data).hexdigest()[:16]}"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    return path


if __name__ == "__main__":
    signal.signal(signal.SIGPROF, _hang)
    signal.signal(signal.SIGALRM, _hang)
    sys.exit(main())
