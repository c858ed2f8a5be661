"""Packages that are compiled: the built file carries those for each kind of machine, and uses its own."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from runner.errors import ConfigError

# Beside the runner in the built file, see build_zipapp.py; where pip installed the runner there is no such directory.
_MACHINES = Path(__file__).resolve().parent.parent / "native"


@contextmanager
def compiled(packages: str, purpose: str) -> Iterator[None]:
    """Import compiled packages within this; raises ConfigError when they cannot be imported.

    ``packages`` are the names to install, and ``purpose`` what does not work without them: both are for the sentence.
    """
    machine = os.uname().machine
    directory = str(_MACHINES / machine)
    # Before all others: these packages fit each other, and what else there is of them may not.
    if _MACHINES.is_dir() and directory not in sys.path:
        sys.path.insert(0, directory)
    try:
        yield
    except ImportError as error:
        python = ".".join(map(str, sys.version_info[:2]))
        raise ConfigError(
            f"this machine ({machine}, Python {python}) cannot load {packages}, without which {purpose}: {_remedy()} "
            f"({error})"
        ) from error


def _remedy() -> str:
    if _MACHINES.is_dir() and os.statvfs(_MACHINES).f_flag & os.ST_NOEXEC:
        return f"{_MACHINES.parent} is mounted noexec, set STUDIO_RUNNER_ROOT to a directory that is not"
    return "install them for this Python"
