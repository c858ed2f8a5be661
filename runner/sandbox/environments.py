"""The cache of built environments: each is built once, shared by attempts while they run, and evicted when it is old.

An entry is a directory ``environments/<key>-<n>`` with ``venv`` (the environment, read-only), ``ready.json`` (written
last: without it the build is under way, or broken) and ``lock``: held exclusively by who builds or removes the entry,
shared by those who use it. It is built where it stays, for environments have their own path written all over them.

Images of containers are kept in the same way, as ``images/<key>-<n>/image.sif``.
"""

from __future__ import annotations

import fcntl
import json
import logging
import math
import os
import re
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from runner.locks import try_lock
from runner.place import remove
from runner.walk import walk

log = logging.getLogger(__name__)

_ENTRY = re.compile(r"[0-9a-f]+-\d+")
_READY, _LOCK = "ready.json", "lock"
# What becomes of ready.json when the entry is not to be used any more, though it may be in use.
_SPOILED = "spoiled.json"
# What an entry is called while it is being removed.
_GONE = ".gone-"

# Experiments may run as another user; who may come near, the directory above these says.
_OPEN = 0o755

# How often to look whether another attempt has built the environment; whether it lets go of the list. In seconds.
_BUILDING, _LISTING = 0.2, 0.005

# By the name of the cache's directory: what an entry's content is called.
_CONTENT = {"environments": "venv", "images": "image.sif"}

About = Any
"""What a build has to say of what it made: JSON."""
Pause = Callable[[float], None]


class Environment:
    """One entry of the cache, and our lock on it, which goes when it is closed or this process ends."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._lock: IO[str] = (directory / _LOCK).open("a")

    @property
    def content(self) -> Path:
        """The virtual environment itself, or the image."""
        return self.directory / _CONTENT[self.directory.parent.name]

    @property
    def ready(self) -> bool:
        """Whether it may be used."""
        return (self.directory / _READY).exists()

    @property
    def spoiled(self) -> bool:
        """Whether it was ready once, and must not be used any more."""
        return (self.directory / _SPOILED).exists()

    @property
    def about(self) -> About:
        """What its build said of it."""
        return self._note["about"]

    @property
    def bytes(self) -> int:
        """How much disk it takes."""
        try:
            return int(self._note["bytes"])
        except (OSError, ValueError, LookupError, TypeError):  # not ready, or a crash took its note
            return sum(_disk(status) for _, status in walk(self.content))

    @property
    def last_used(self) -> float:
        """When somebody wanted it last, in seconds since 1970."""
        return os.fstat(self._lock.fileno()).st_mtime

    @property
    def _note(self) -> dict[str, Any]:
        noted: dict[str, Any] = json.loads((self.directory / _READY).read_text())
        return noted

    def own(self) -> bool:
        """Lock it for ourselves alone; false when it is in use."""
        return try_lock(self._lock)

    def share(self) -> None:
        """Lock it together with others who use it, and note that it is wanted now."""
        fcntl.flock(self._lock, fcntl.LOCK_SH)
        os.utime(self.directory / _LOCK)

    def seal(self, about: About) -> None:
        """Make it read-only for everybody who gets here, whatever umask it was built with, and note what it is."""
        entries = list(walk(self.content))
        for path, status in entries:
            if not stat.S_ISLNK(status.st_mode):
                os.chmod(path, 0o555 if status.st_mode & 0o100 else 0o444)  # noqa: PTH101 -- there are many
        checked = [(path, status) for path, status in entries if _counts(path)]
        folders = [path for path, status in checked if stat.S_ISDIR(status.st_mode)]
        note = {
            "about": about,
            "bytes": sum(_disk(status) for _, status in entries),
            "folders": [os.path.relpath(path, self.content) for path in folders],
            "sealed": max(os.lstat(path).st_ctime_ns for path, _ in checked),
        }
        (self.directory / f".{_READY}").write_text(json.dumps(note))

    def publish(self) -> None:
        """Declare it ready, once it is sealed."""
        (self.directory / f".{_READY}").replace(self.directory / _READY)

    def intact(self, *, thoroughly: bool = False) -> bool:
        """Tell whether nothing was put into it, taken out or renamed since it was sealed; that takes milliseconds.

        ``thoroughly`` tells of files written in place too, and takes ten times as long. Byte code that Python adds is
        no change. It guards against accidents: who has our rights can forge whatever is looked at.
        """
        try:
            note = self._note
            if "about" not in note:
                return False  # another version of the runner has built it
            paths = [str(self.content), *(f"{self.content}/{folder}" for folder in note["folders"])]
            if thoroughly:
                paths = [path for path, _ in walk(self.content) if _counts(path)]
            return all(os.lstat(path).st_ctime_ns <= note["sealed"] for path in paths)
        except (OSError, ValueError, LookupError, TypeError):
            return False

    def spoil(self) -> None:
        """Let nobody use it any more who does not use it yet."""
        with suppress(FileNotFoundError):  # it is spoiled already
            (self.directory / _READY).replace(self.directory / _SPOILED)

    def close(self) -> None:
        """Let go of it."""
        self._lock.close()


def _counts(path: str) -> bool:
    """Byte code may come and go."""
    return "__pycache__" not in path.split("/")


def _disk(status: os.stat_result) -> int:
    return status.st_blocks * 512


class Environments:
    """All built environments below a runner's root, or all ``images``.

    ``pause`` waits so many seconds, or raises what ends the wait.
    """

    def __init__(self, home: Path, kind: str = "environments", *, pause: Pause = time.sleep) -> None:
        self._root, self._pause = home / kind, pause

    def use(self, key: str, build: Callable[[Path], About]) -> Environment:
        """Return the environment of this key, in use until it is closed; it is built if there is none.

        ``build`` makes its content at a path where nothing is yet, and says what it is. One builds while others that
        want the same wait. What ``build`` raises is raised, and leaves nothing behind.
        """
        while (found := self._claim(key)) is None:
            self._pause(_BUILDING)
        if not found.ready:
            self._fill(found, build)
        return found

    def _claim(self, key: str) -> Environment | None:
        """Return a ready entry, or a new one that is ours to fill, or None while another one fills it."""
        with self._listed() as directories:
            for entry in _opened(directory for directory in directories if directory.name.startswith(f"{key}-")):
                if entry.ready and entry.intact():
                    entry.share()
                    return entry
                if entry.ready:
                    _spoil(entry)
                elif not entry.spoiled and not entry.own():
                    entry.close()
                    return None
                entry.close()
            number = 1 + max((int(directory.name.rpartition("-")[2]) for directory in directories), default=0)
            directory = self._root / f"{key}-{number}"
            directory.mkdir()
            directory.chmod(_OPEN)
            entry = Environment(directory)
            entry.own()
            return entry

    def _fill(self, entry: Environment, build: Callable[[Path], About]) -> None:
        try:
            entry.seal(build(entry.content))
            with self._listed():
                entry.publish()
                entry.share()
        finally:
            if not entry.ready:
                remove(entry.directory)
                entry.close()

    def used(self) -> int:
        """Return how many bytes of disk all environments take."""
        return sum(self._sizes().values())

    def shrink(self, limit: int) -> int:
        """Remove what was used longest ago until all take at most ``limit`` bytes; return how many are left.

        What is in use stays, whatever it takes. What broken builds have left is removed in any case.
        """
        return self._evict(lambda _entry, total: total > limit)

    def expire(self, age: float) -> int:
        """Remove what was used last more than ``age`` seconds ago; return how many bytes are left."""
        end = time.time() - age
        return self._evict(lambda entry, _total: entry.last_used < end)

    def tidy(self, *, age: float, size: int) -> None:
        """Remove what is altered, old, or too much; 0 is no limit."""
        for directory in self._directories():
            with suppress(FileNotFoundError), closing(Environment(directory)) as entry:
                if entry.ready and not entry.intact(thoroughly=True):
                    _spoil(entry)
        self.expire(age or math.inf)
        if size:
            self.shrink(size)

    def _evict(self, unwanted: Callable[[Environment, int], bool]) -> int:
        sizes = self._sizes()
        total = sum(sizes.values())
        with self._listed() as directories, ExitStack() as stack:
            entries = [stack.enter_context(closing(entry)) for entry in _opened(directories)]
            for entry in sorted(entries, key=lambda entry: entry.last_used):
                if (not entry.ready or unwanted(entry, total)) and entry.own():
                    entry.directory.rename(self._root / f"{_GONE}{entry.directory.name}")
                    total -= sizes.get(entry.directory, 0)
        for gone in self._root.glob(f"{_GONE}*"):
            remove(gone)
        return total

    def _sizes(self) -> dict[Path, int]:
        sizes = {}
        for directory in self._directories():
            with suppress(FileNotFoundError), closing(Environment(directory)) as entry:
                sizes[directory] = entry.bytes
        return sizes

    @contextmanager
    def _listed(self) -> Iterator[list[Path]]:
        """List the entries; none comes, becomes ready or goes in the meantime."""
        self._root.mkdir(parents=True, exist_ok=True)
        if self._root.stat().st_mode & _OPEN != _OPEN:
            self._root.chmod(_OPEN)
        with (self._root / _LOCK).open("a") as lock:
            while not try_lock(lock):
                self._pause(_LISTING)
            yield self._directories()

    def _directories(self) -> list[Path]:
        try:
            return sorted(self._root / name for name in os.listdir(self._root) if _ENTRY.fullmatch(name))
        except FileNotFoundError:
            return []


def _opened(directories: Iterable[Path]) -> Iterator[Environment]:
    """Open entries, but for those whose build has failed since they were listed."""
    for directory in directories:
        with suppress(FileNotFoundError):
            yield Environment(directory)


def _spoil(entry: Environment) -> None:
    log.warning("%s was altered since it was built: it is not used any more", entry.content)
    entry.spoil()
