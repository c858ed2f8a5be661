"""Finding the Python that an experiment wants among those that are installed."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from glob import glob
from pathlib import Path

from runner.errors import MachineError
from runner.machine.users import own_home

_NAME = re.compile(r"python(\d(\.\d+)?)?$")
# Other implementations, and the one without its global lock, have Python's version too, but not its compiled packages.
_QUESTION = (
    "import sys; other = hasattr(sys, 'pypy_version_info') or 't' in getattr(sys, 'abiflags', ''); "
    "print('' if other else '%d.%d.%d' % sys.version_info[:3])"
)

# Many writers make 3.1 of the number 3.10, and nobody wants the Python of 2009.
_MEANT: dict[tuple[int, ...], tuple[int, ...]] = {(3, 1): (3, 10)}


@dataclass(frozen=True)
class Interpreter:
    """A Python executable and its version, ``(3, 11, 7)``."""

    path: Path
    version: tuple[int, ...]

    def __str__(self) -> str:
        return ".".join(map(str, self.version))


def find(wanted: str, directories: list[Path] | None = None, *, more: Sequence[str] = ()) -> Interpreter:
    """Return the newest installed interpreter whose version ``wanted`` (``3``, ``3.11``, ``3.11.4``) is a prefix of.

    ``directories`` are searched instead of PATH, pyenv's and uv's; ``more`` (``--python-dirs``) besides them, and
    before them. Raises MachineError naming what is there.
    """
    numbers = prefix(wanted)
    found = _installed(_directories(more) if directories is None else directories)
    fitting = [one for one in found if one.version[: len(numbers)] == numbers]
    named = ".".join(map(str, numbers))
    if numbers[0] < 3:
        raise MachineError(f"Python {named} makes no virtual environments: an image in _singularity can have it")
    if not fitting:
        known = ", ".join(dict.fromkeys(map(str, sorted(found, key=lambda one: one.version)))) or "none at all"
        raise MachineError(f"this machine has no Python {named} for the experiment (it has {known}): install it")
    return max(fitting, key=lambda one: one.version)


def prefix(wanted: str) -> tuple[int, ...]:
    """Return what the version that a message names means, as numbers."""
    numbers = tuple(int(part) for part in wanted.split("."))
    return _MEANT.get(numbers, numbers)


def there(directories: list[Path] | None = None, *, more: Sequence[str] = ()) -> list[Interpreter]:
    """Return every interpreter that experiments can have, the newest last; see ``find``."""
    return sorted(_installed(_directories(more) if directories is None else directories), key=lambda one: one.version)


def _directories(more: Sequence[str]) -> list[Path]:
    pyenv = Path(os.environ.get("PYENV_ROOT") or own_home() / ".pyenv") / "versions"
    data = Path(os.environ.get("XDG_DATA_HOME") or own_home() / ".local" / "share")
    uv = Path(os.environ.get("UV_PYTHON_INSTALL_DIR") or data / "uv" / "python")
    path = [Path(entry) for entry in os.environ.get("PATH", "").split(os.pathsep) if entry]
    named = [place for each in more for place in (Path(each), Path(each, "bin"), *_programs(Path(each)))]
    return named + path + _programs(pyenv) + _programs(uv)


def _programs(root: Path) -> list[Path]:
    """Return the directories of programs of what is installed side by side; none where we may not look."""
    return sorted(root / found for found in glob("*/bin", root_dir=root))  # noqa: PTH207 -- Path.glob raises


def _installed(directories: list[Path]) -> list[Interpreter]:
    """Interpreters that work and have a module venv, each file once; the earliest directory's of equal ones first."""
    seen: dict[str, Interpreter] = {}
    for candidate in _candidates(directories):
        real = os.path.realpath(candidate)  # which takes links in a circle, too
        # A pyenv shim is a shell script that may start any version; the real ones are listed beside it.
        if real in seen or "shims" in candidate.parts:
            continue
        version = _version(candidate)
        if version >= (3, 3):
            seen[real] = Interpreter(candidate, version)
    return list(seen.values())


def _candidates(directories: list[Path]) -> Iterator[Path]:
    for directory in directories:
        try:
            names = sorted(name for name in os.listdir(directory) if _NAME.match(name))
        except OSError:
            continue
        # The longest name first: python3.11 rather than python3, which may be moved to another version.
        for name in sorted(names, key=len, reverse=True):
            yield directory / name


_versions: dict[tuple[str, int], tuple[int, ...]] = {}


def _version(path: Path) -> tuple[int, ...]:
    """Return an interpreter's version, () when it does not work; remembered for as long as the file is the same."""
    try:
        known = (os.path.realpath(path), path.stat().st_mtime_ns)
    except OSError:
        return ()
    if known not in _versions:
        _versions[known] = _ask(path)
    return _versions[known]


def _ask(path: Path) -> tuple[int, ...]:
    command = [str(path), "-S", "-E", "-c", _QUESTION]
    try:
        answer = subprocess.run(command, capture_output=True, timeout=10, check=True, text=True)
        return tuple(int(part) for part in answer.stdout.strip().split("."))
    except (OSError, subprocess.SubprocessError, ValueError):
        return ()
