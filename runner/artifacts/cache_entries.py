"""What lies in the artifact cache: whole entries, drafts of entries, and the room for both, shared by processes.

entries/<identity>-<random>/  content (a file or a tree) and about.json; it comes here whole, by a rename
drafts/<random>/              an entry being made by a process that holds its lock
locks/<identity>              held by the one who fetches an object
lock                          held, for a moment, by whoever counts, makes room, or puts something into place
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from runner.errors import ConfigError, RunnerError
from runner.locks import try_lock
from runner.machine.disk import free
from runner.machine.hoard import LEFT_FREE
from runner.place import remove
from runner.units import format_size

log = logging.getLogger(__name__)

_ABOUT, _CONTENT, _LOCK, _RESERVED = "about.json", "content", "lock", "reserved"

# What an entry's directory, its lock and what is written about it take of the disk at most. In bytes.
_OVERHEAD = 16 * 1024

# How long to wait before looking at a lock again, in seconds: one that is held for a moment, or for a download.
_MOMENT, _DOWNLOAD = 0.01, 0.1


class CacheFailure(RunnerError):
    """The cache has no room, or its disk does not work: nothing that could not be done without it."""


@dataclass(frozen=True)
class About:
    """What is known of an entry: the SHA-256 of its object, the bytes of disk that it takes, and its survey's evidence.

    Of a tree also what it costs of an attempt's budget.
    """

    digest: str
    size: int
    evidence: str
    spent: int = 0


@dataclass(frozen=True)
class Entry:
    """A whole entry; ``used`` is when, in nanoseconds since 1970."""

    path: Path
    about: About
    used: int

    @property
    def content(self) -> Path:
        """The file, or the tree."""
        return self.path / _CONTENT

    @property
    def size(self) -> int:
        """All that it takes of the disk."""
        return self.about.size + _OVERHEAD


class Entries:
    """The cache's directory; see Hoard. ``pause`` is how it waits for other processes, and may raise.

    Whatever it cannot do raises CacheFailure.
    """

    def __init__(self, root: Path, limit: int, *, pause: Callable[[float], None] = time.sleep) -> None:
        self.root, self.pause = root, pause
        self._limit = limit

    def create(self) -> None:
        """Make the directories, for this user only. Raises ConfigError."""
        try:
            for name in ("entries", "drafts", "locks"):
                (self.root / name).mkdir(mode=0o700, parents=True, exist_ok=True)
            (self.root / _LOCK).touch()
        except OSError as error:
            raise ConfigError(
                f"the cache {self.root} cannot be used ({error.strerror}): name another --cache-dir"
            ) from error

    def find(self, identity: str) -> list[Entry]:
        """Return the whole entries of that name, and count that as a use of them."""
        found = list(self._entries(f"{identity}-"))
        for entry in found:
            with suppress(OSError):  # it may be gone by now
                os.utime(entry.path)
        return found

    def drop(self, entry: Entry) -> None:
        """Remove an entry; whoever reads it already reads on."""
        _remove(entry.path)

    def vouch(self, entry: Entry, evidence: str) -> None:
        """Renew an entry's evidence."""
        draft = entry.path / f".{secrets.token_hex(4)}"
        draft.write_text(json.dumps(asdict(replace(entry.about, evidence=evidence))))
        draft.replace(entry.path / _ABOUT)

    def take(self, entry: Entry, target: Path) -> bool:
        """Take an entry out of the cache, to where it is the caller's.

        False when somebody else has got it, or it would have to go to another file system.
        """
        try:
            entry.path.rename(target)
        except OSError:
            return False
        return True

    @contextmanager
    def fetching(self, identity: str) -> Iterator[None]:
        """Wait until nobody else fetches the object, and keep others waiting; the lock goes with its process."""
        path = self.root / "locks" / identity
        try:
            while True:
                with path.open("w") as lock:
                    while not try_lock(lock):
                        self.pause(_DOWNLOAD)
                    if _same(lock.fileno(), path):
                        try:
                            yield
                        finally:
                            path.unlink(missing_ok=True)
                        return
        except OSError as error:
            raise _failure(error) from error

    @contextmanager
    def draft(self) -> Iterator[Draft]:
        """Begin an entry. Without ``keep`` nothing remains of it, sooner or later also when the process is killed."""
        try:
            with self._alone():
                path = Path(tempfile.mkdtemp(dir=self.root / "drafts"))
                lock = (path / _LOCK).open("w")
                try_lock(lock)
            with lock:
                try:
                    yield Draft(self, path)
                finally:
                    if path.exists():
                        remove(path)
        except OSError as error:
            raise _failure(error) from error

    def used(self) -> int:
        """See Hoard; drafts count with what is reserved for them."""
        return sum(entry.size for entry in self._entries()) + sum(reserved for reserved, _ in self._drafts())

    def shrink(self, limit: int) -> int:
        """See Hoard. What is being fetched, or read, is in use."""
        try:
            with self._alone():
                return self._evict(self._swept(), limit)
        except OSError as error:
            raise _failure(error) from error

    def make_room(self, size: int, draft: Path) -> None:
        """Make the draft's reservation so large, at the cost of what was used least recently."""
        with self._alone():
            entries = self._swept()
            (draft / _RESERVED).write_text("0")
            drafts = list(self._drafts())
            reserved, written = (sum(each) for each in zip((0, 0), *drafts, strict=True))
            kept = sum(entry.size for entry in entries)
            limit = min(self._limit, kept + written + free(self.root) - LEFT_FREE)
            if size + reserved > limit:
                raise CacheFailure(f"there is no room for {format_size(size)} in {self.root}")
            self._evict(entries, limit - size)
            (draft / _RESERVED).write_text(str(size))

    def put(self, draft: Path, identity: str) -> None:
        """Make a draft an entry."""
        with self._alone():
            for name in (_LOCK, _RESERVED):
                (draft / name).unlink(missing_ok=True)
            os.utime(draft)
            draft.rename(self.root / "entries" / f"{identity}-{secrets.token_hex(4)}")

    @contextmanager
    def _alone(self) -> Iterator[None]:
        with (self.root / _LOCK).open("w") as lock:
            while not try_lock(lock):
                self.pause(_MOMENT)
            yield

    def _entries(self, prefix: str = "") -> Iterator[Entry]:
        for path in _listed(self.root / "entries"):
            if not path.name.startswith(prefix):
                continue
            try:
                about = About(**json.loads((path / _ABOUT).read_bytes()))
                yield Entry(path, about, path.stat().st_mtime_ns)
            except (OSError, ValueError, TypeError):
                continue  # it is being removed, or its remover was killed

    def _drafts(self) -> Iterator[tuple[int, int]]:
        """Yield what each draft has reserved, and how much of that it uses already."""
        for path in _listed(self.root / "drafts"):
            with suppress(OSError, ValueError):
                yield int((path / _RESERVED).read_text()), _written(path / _CONTENT)

    def _swept(self) -> list[Entry]:
        """Remove what killed processes have left. Return the entries, by use. To be called alone."""
        entries = sorted(self._entries(), key=lambda entry: entry.used)
        for path in set(_listed(self.root / "entries")) - {entry.path for entry in entries}:
            remove(path)
        for path in _listed(self.root / "drafts"):
            if _abandoned(path):
                remove(path)
        return entries

    def _evict(self, entries: list[Entry], limit: int) -> int:
        """Remove the first entries until ``limit`` bytes are left; return how many are. To be called alone."""
        left = sum(entry.size for entry in entries) + sum(reserved for reserved, _ in self._drafts())
        for entry in entries:
            if left <= limit:
                break
            _remove(entry.path)
            left -= entry.size
        return left


class Draft:
    """An entry being made: its maker fills ``content``, having reserved the room."""

    def __init__(self, entries: Entries, path: Path) -> None:
        self._entries, self._path = entries, path

    @property
    def content(self) -> Path:
        """Where the file or the tree has to be."""
        return self._path / _CONTENT

    def reserve(self, size: int) -> None:
        """Make sure of so many bytes in all."""
        self._entries.make_room(size + _OVERHEAD, self._path)

    def abandon(self) -> None:
        """Give the room back at once."""
        for name in (_CONTENT, _RESERVED):
            with suppress(OSError):
                (self._path / name).unlink()

    def keep(self, identity: str, about: About) -> None:
        """Make it an entry."""
        (self._path / _ABOUT).write_text(json.dumps(asdict(about)))
        self._entries.put(self._path, identity)


def _failure(error: OSError) -> CacheFailure:
    return CacheFailure(f"the cache cannot be used: {error.strerror} ({error.filename})")


def _listed(directory: Path) -> list[Path]:
    try:
        return [directory / name for name in os.listdir(directory)]
    except FileNotFoundError:
        return []


def _remove(path: Path) -> None:
    """Remove an entry, of which nothing can be found from the first moment on."""
    with suppress(OSError):
        (path / _ABOUT).unlink()
    remove(path)


def _abandoned(draft: Path) -> bool:
    try:
        with (draft / _LOCK).open("r+") as lock:
            return try_lock(lock)
    except FileNotFoundError:
        return True


def _written(content: Path) -> int:
    """Return how much of its reservation a draft takes up; trees come here from the same disk, and take nothing."""
    try:
        status = content.stat()
    except FileNotFoundError:
        return 0
    return status.st_blocks * 512 if stat.S_ISREG(status.st_mode) else 0


def _same(fd: int, path: Path) -> bool:
    """False for a lock that its last holder has removed meanwhile."""
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except FileNotFoundError:
        return False
