"""What an environment is made of, and the key that says whether two are the same."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from runner.errors import RequirementError
from runner.sandbox.indexes import Indexes
from runner.sandbox.requirements import Installable
from runner.storage.base import CHUNK
from runner.units import format_size

# To be counted up when environments are built in another way, so that those of before are not used any more.
_FORM = 1

# In bytes, with all its files: reading them takes some seconds.
_LARGEST = 2 * 1024**3

_PATH = re.compile(
    r"(?P<path>(/|\.{1,2}(/|(?=[\[ ;]|$)))[^\[ ;]*|[\w.-]+/[^\[ ;@:]*|[^\[ ;@/]+\.(whl|zip|tar\.\w+|tgz))"
)
_PINNED = re.compile(r"[A-Za-z0-9._-]+(\[[^\]]*\])? *===?[^*]*")


@dataclass(frozen=True)
class Recipe:
    """The interpreter and the lists of requirements, which are installed one after the other.

    ``identity`` tells apart interpreters that have the same path and version: a file's size and date, an image's hash.
    ``paths`` are the requirements of the lists that are files or directories: their content counts, too.
    """

    python: str
    version: str
    identity: str
    lists: tuple[Installable, ...]
    paths: tuple[Path, ...] = ()

    def key(self, indexes: Indexes) -> str:
        """Name all that decides what is installed. Who installs it, pip or uv, does not."""
        digest = hashlib.sha256()
        parts = [
            [_FORM, self.python, self.version, self.identity, os.uname().machine, _libc()],
            [_ordered(self._placeless(each.requirements)) for each in self.lists],
            sorted(indexes.counting().items()),
        ]
        digest.update(json.dumps(parts).encode())
        for path in self.paths:
            for piece in _content(path):
                digest.update(piece)
        return digest.hexdigest()[:32]

    def _placeless(self, requirements: Iterable[str]) -> list[str]:
        """Name files by their last names only: each attempt has its workspace in another place."""
        lines = list(requirements)
        for path in self.paths:
            lines = [line.replace(str(path), path.name) for line in lines]
        return lines


def identity(python: str) -> str:
    """Tell an interpreter from one that replaces it. A file that is not there has none."""
    try:
        status = Path(python).stat()
    except OSError:
        return ""
    return f"{Path(python).resolve()} {status.st_size} {status.st_mtime_ns}"


def located(requirements: Iterable[str], workspace: Path) -> tuple[tuple[str, ...], tuple[Path, ...]]:
    """Make those requirements absolute that are files or directories of the workspace; return all, and their paths.

    Raises RequirementError for those that are elsewhere, or nowhere: installers would look for them in places of ours.
    """
    lines, paths = [], []
    for line in requirements:
        if match := _PATH.match(line):
            path = Path(os.path.normpath(workspace / match["path"]))
            if not _lies_in(workspace, path):
                raise RequirementError(f"the requirement {match['path']!r} is no file or directory of the workspace")
            paths.append(path)
            line = f"{path}{line[match.end() :]}"  # noqa: PLW2901
        lines.append(line)
    return tuple(lines), tuple(paths)


def _lies_in(workspace: Path, path: Path) -> bool:
    try:
        return path.exists() and path.resolve().is_relative_to(workspace.resolve())
    except (OSError, RuntimeError):  # a name that is too long, or links that go round
        return False


def _ordered(requirements: list[str]) -> list[str]:
    """Return them in an order of their own where pip's result does not depend on it: each is pinned."""
    pinned = all(_PINNED.fullmatch(line.partition(";")[0].strip()) for line in requirements)
    return sorted(requirements) if pinned else requirements


def _content(path: Path) -> Iterator[bytes]:
    """Yield a line for each file, so that no other files have the same lines. Raises RequirementError."""
    files = list(_files(path))
    if sum(file.stat().st_size for file in files) > _LARGEST:
        raise RequirementError(
            f"the requirement {path.name!r} of the workspace is larger than {format_size(_LARGEST)}: it is no package"
        )
    for file in files:
        digest = hashlib.sha256()
        with file.open("rb") as opened:
            while data := opened.read(CHUNK):
                digest.update(data)
        yield f"{file.relative_to(path.parent).as_posix()!r} {digest.hexdigest()}\n".encode()


def _files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
        return
    for directory, directories, names in os.walk(path):
        directories.sort()
        yield from (file for name in sorted(names) if (file := Path(directory, name)).is_file())


def _libc() -> str:
    try:
        return os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (ValueError, OSError):
        return ""
