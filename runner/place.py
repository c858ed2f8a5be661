"""The directories below the runner's one root: made, locked while they are in use, and swept when their user died."""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from runner.errors import ConfigError
from runner.locks import try_lock
from runner.machine import delegated, process

log = logging.getLogger(__name__)

_LOCK = "lock"

# A directory without a lock may be one that is being made just now. In seconds.
_TOO_YOUNG = 60.0


@dataclass(frozen=True)
class Place:
    """The directories of one attempt: one for each label, and ``_runner``, the runner's own (``scratch``)."""

    home: Path
    name: str

    @property
    def root(self) -> Path:
        """The attempt's directory: everything else lies in it."""
        return self.home / "experiments" / self.name

    def open_to(self, group: int) -> None:
        """Let a group in that the experiment runs in: until then, and to everybody else, the directory is closed."""
        os.chown(self.root, -1, group)
        self.root.chmod(0o750)
        self.scratch.chmod(0o711)

    @property
    def scratch(self) -> Path:
        """The runner's own."""
        return self.root / "_runner"

    @property
    def workspace(self) -> Path:
        """Where the experiment's process starts."""
        return self.root / "workspace"

    def label(self, label: str) -> Path:
        """An artifact's directory."""
        return self.root / label

    def log(self, *, labelled: bool) -> Path:
        """The experiment's log, in the artifact ``output`` where its message has one."""
        return (self.label("output") if labelled else self.scratch) / "output"


def make_home(home: Path, *, shared: bool = False) -> None:
    """Make the runner's root, for this user only, unless others that work in it are to be ``shared`` the way through.

    Raises ConfigError when it is somebody else's.
    """
    mode = 0o711 if shared else 0o700
    try:
        (home / "experiments").mkdir(parents=True, exist_ok=True, mode=0o700)
        status = home.lstat()
        if home.is_symlink() or status.st_uid != os.geteuid():
            raise ConfigError(f"{home} belongs to somebody else: name another place with --working-dir")
        for directory in (home, home / "experiments"):
            directory.chmod(mode)
    except OSError as error:
        raise ConfigError(f"{home} cannot be used ({error.strerror}): name another place with --working-dir") from error


@contextmanager
def placed(home: Path, key: str, *, keep: bool) -> Iterator[Place]:
    """Make a directory for an attempt at the experiment ``key``; it is removed at the end unless ``keep``."""
    place = _make(home, hashlib.sha256(key.encode()).hexdigest()[:12])
    (place.scratch / "tmp").mkdir(parents=True)
    place.workspace.mkdir()
    with (place.scratch / _LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            yield place
        finally:
            if not keep:
                remove(place.root)


def _make(home: Path, prefix: str) -> Place:
    for number in count(1):
        place = Place(home, f"{prefix}-{number}")
        try:
            place.root.mkdir(parents=True, mode=0o700)
        except FileExistsError:
            continue
        return place
    raise AssertionError("count() does not end")


def turn(home: Path, second: int) -> tuple[int, int]:
    """Return a second, and the number of this attempt in it, from 0: a pair that no runner below ``home`` gets twice.

    Metadata objects are named by it, and of two of one name the first would be lost. The second is a later one when
    the clock has gone back.
    """
    with (home / "clock").open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        last, _, counted = file.read().partition(" ")
        latest = int(last or 0)
        pair = (second, 0) if second > latest else (latest, int(counted) + 1)
        file.truncate(0)
        file.write(f"{pair[0]} {pair[1]}")
    return pair


def sweep(home: Path, *, keep: bool) -> None:
    """Clear away what killed attempts have left below ``home``: processes, and unless ``keep`` directories."""
    for root in (home / "experiments").iterdir():
        clear(Place(home, root.name), keep=keep)


def clear(place: Place, *, keep: bool) -> None:
    """Clear away one attempt's remains; one that still runs is left alone."""
    try:
        with (place.scratch / _LOCK).open("r+") as lock:
            if not try_lock(lock):
                return
    except OSError:
        if not place.root.exists() or time.time() - place.root.stat().st_mtime < _TOO_YOUNG:
            return
    killed = process.kill_marked(f"STUDIOML_EXPERIMENT={place.name}", f"STUDIOML_HOME={place.home}")
    delegated.sweep()
    if killed:
        log.warning("%d processes of the dead attempt in %s were still there, and are killed", killed, place.root)
    if not keep:
        remove(place.root)


def remove(directory: Path) -> None:
    """Remove a tree, also one that is deeper than Python can count, or has directories that may not be written."""
    remove_all = ["rm", "-rf", "--", str(directory)]
    if subprocess.run(remove_all, stderr=subprocess.DEVNULL, check=False).returncode:
        subprocess.run(["chmod", "-R", "u+rwX", "--", str(directory)], stderr=subprocess.DEVNULL, check=False)  # noqa: S607
        subprocess.run(remove_all, stderr=subprocess.DEVNULL, check=False)
