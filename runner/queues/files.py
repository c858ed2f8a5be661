"""Queues that are directories: each sub-directory of the root is one, each plain file in it a message.

A message is claimed by an exclusive ``flock`` on its own file. The lock goes with the process that holds it, so a
message whose taker dies is back at once, and it is never moved: there is no moment at which it could get lost.
"""

from __future__ import annotations

import logging
import os
import stat
import time
import uuid
from collections import deque
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from io import FileIO
from pathlib import Path

from runner.errors import Unavailable
from runner.locks import try_lock
from runner.message import strict_json
from runner.queues import carries_reports
from runner.queues.base import Refreshed
from runner.queues.files_held import FileDelivery, Owed, is_directory

log = logging.getLogger(__name__)

# StudioML's own client holds this file's lock (Python's filelock) while it writes a message in place.
_CLIENTS_LOCK = "lock.lock"
# A request that is not complete JSON may still be being written, until it has not changed for so long. In seconds.
# Reports are no JSON, and appear whole.
_UNFINISHED = 10.0
# More are too many for a request, and for our memory.
_MOST_VALUES = 1_000_000
# No request is larger; what is gets only so far, and is refused for what it is.
_LARGEST = 17 * 1024 * 1024


class Directory:
    """A QueueServer over a directory of queues. ``now`` gives seconds since 1970, as files' times are."""

    kind = "local"

    def __init__(self, root: Path, wanted: Callable[[str], bool], *, now: Callable[[], float] = time.time) -> None:
        self._root, self._wanted, self._now = root, wanted, now
        self._held: list[FileDelivery] = []
        self._listed: dict[str, deque[Path]] = {}
        self._owed: dict[Path, Owed] = {}
        self._said: set[tuple[str, int | None]] = set()
        self._succeeded = self._failed = 0
        self._trouble = ""

    def queues(self) -> list[str]:
        """List the sub-directories whose names are wanted."""
        return [name for name in self._names() if self._wanted(name)]

    def others(self) -> list[str]:
        """List the sub-directories whose names are not wanted."""
        return [name for name in self._names() if not self._wanted(name)]

    def refreshed(self) -> list[Refreshed]:
        """Say how often the root could be read."""
        return [Refreshed(str(self._root), self._succeeded, self._failed, self._trouble)]

    def deleted(self, queue: str) -> bool:
        """True when the root is there, and the queue's directory is not."""
        try:
            return is_directory(self._root) and not is_directory(self._root / queue)
        except OSError:
            return False

    def _names(self) -> list[str]:
        try:
            with os.scandir(self._root) as entries:
                found = [entry.name for entry in entries if not entry.name.startswith(".") and _leads_on(entry)]
        except OSError as error:
            self._failed += 1
            self._trouble = f"it cannot be read: {error.strerror}"
            log.debug("%s cannot be read: %s", self._root, error.strerror)
            return []
        self._succeeded += 1
        self._trouble = ""
        return found

    def take(self, queue: str) -> FileDelivery | None:
        """Claim the oldest message that nobody holds.

        The directory is read again only when all that it had was looked at: a long queue would take long to read.
        """
        directory = self._root / queue
        listed = self._listed.setdefault(queue, deque())
        if not listed:
            listed.extend(_oldest_first(directory))
            self._forget(directory, listed)
        while listed:
            path = listed.popleft()
            if delivery := self._claim(queue, path):
                self._held = [each for each in self._held if not each.settled]
                self._held.append(delivery)
                return delivery
        return None

    def rest(self, queue: str) -> None:
        """Begin with the oldest message at the next take."""
        self._listed.pop(queue, None)

    def publish(self, queue: str, body: bytes) -> bool:
        """Put a message into a queue, under a name that sorts by time."""
        try:
            _put(self._root / queue, f"{time.time_ns():020}-{uuid.uuid4().hex[:8]}", body)
        except OSError as error:
            log.debug("nothing can be written to queue %s: %s", queue, error.strerror)
            return False
        return True

    def close(self) -> None:
        """Unlock what is held."""
        for delivery in self._held:
            delivery.give_back()

    def _claim(self, queue: str, path: Path) -> FileDelivery | None:
        try:
            with _clients_lock(path.parent) as ours, ExitStack() as stack:
                flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
                file = stack.enter_context(FileIO(os.open(path, flags), "r"))
                if not (ours and try_lock(file) and _is_still(path, file)) or self._settled(path, file):
                    return None
                body = self._read(queue, path, file)
                if body:
                    delivery = FileDelivery(queue, path, file, body, self._owed)
                    stack.pop_all()
                    return delivery
        except FileNotFoundError:
            pass
        except OSError as error:
            if (queue, error.errno) not in self._said:
                log.warning("%s cannot be taken, perhaps among others: %s", path, error.strerror)
                self._said.add((queue, error.errno))
        return None

    def _read(self, queue: str, path: Path, file: FileIO) -> bytes:
        """Return a message, b"" while it may be half-written. Raises OSError."""
        body = file.read(_LARGEST)
        if len(body) == _LARGEST:
            log.error("%s is larger than any request, and is cut off after %d MiB", path, _LARGEST >> 20)
        unchanged = self._now() - os.fstat(file.fileno()).st_mtime
        return body if carries_reports(queue) or _is_json(body) or unchanged > _UNFINISHED else b""

    def _settled(self, path: Path, file: FileIO) -> bool:
        """Tell whether a message, which is locked, was settled before; take it out of its queue if that works now."""
        owed = self._owed.get(path)
        if owed is None or owed.inode != os.fstat(file.fileno()).st_ino:
            return False
        with suppress(OSError):
            owed.action()
            del self._owed[path]
        return True

    def _forget(self, directory: Path, listed: Collection[Path]) -> None:
        """Owe nothing any more for messages that others have removed."""
        there = set(listed) if self._owed else set()
        for path in [path for path in self._owed if path.parent == directory and path not in there]:
            del self._owed[path]


def _leads_on(entry: os.DirEntry[str]) -> bool:
    """Tell whether an entry is a directory, or a link to one, and has a name that can be told to everybody."""
    try:
        return bool(entry.name.encode()) and entry.is_dir()
    except (OSError, UnicodeEncodeError):
        return False  # a link that goes in a circle, for example


def _oldest_first(directory: Path) -> list[Path]:
    found = []
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                hidden = entry.name.startswith(".") or entry.name.endswith(".tmp") or entry.name == _CLIENTS_LOCK
                with suppress(OSError):  # it is gone
                    if not hidden and entry.is_file(follow_symlinks=False):
                        found.append((entry.stat(follow_symlinks=False).st_mtime_ns, entry.name))
    except OSError:
        return []  # the queue is gone
    return [directory / name for _, name in sorted(found)]


@contextmanager
def _clients_lock(directory: Path) -> Iterator[bool]:
    """Keep the client from writing meanwhile; false when it is writing just now."""
    try:
        file = FileIO(directory / _CLIENTS_LOCK, "r+")
    except OSError:
        yield True  # no client uses one here
        return
    with file:
        yield try_lock(file)


def _is_still(path: Path, file: FileIO) -> bool:
    """False when somebody settled the message between our opening it and locking it."""
    try:
        there = path.lstat()
    except OSError:
        return False
    here = os.fstat(file.fileno())
    return stat.S_ISREG(here.st_mode) and (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)


def _is_json(body: bytes) -> bool:
    """Tell whether a message is complete; whether it is one that anybody likes is not our concern."""
    try:
        strict_json.loads(body.decode("utf-8-sig"), most=_MOST_VALUES)
    except (strict_json.NotJson, UnicodeDecodeError):
        return False
    except ValueError:
        return True
    return True


def publish(root: Path, queue: str, body: bytes) -> None:
    """Put a message into a queue, which is made if need be; it appears whole. Raises Unavailable."""
    directory = root / queue
    try:
        directory.mkdir(parents=True, exist_ok=True)
        _put(directory, uuid.uuid4().hex, body, durable=True)
    except OSError as error:
        raise Unavailable(f"the message cannot be written to {directory}: {error.strerror}") from error


def _put(directory: Path, name: str, body: bytes, *, durable: bool = False) -> None:
    """Make a message appear whole; ``durable``: only when the disk has it."""
    hidden = directory / f".{name}"
    try:
        with hidden.open("xb") as file:
            file.write(body)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        hidden.replace(directory / name)
    except OSError:
        with suppress(OSError):
            hidden.unlink()
        raise
