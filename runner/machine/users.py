"""Another user for experiments than the runner's own: what they must not touch then is kept from them by the kernel."""

from __future__ import annotations

import errno
import os
import pwd
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

# What has vanished meanwhile, or is no directory any more.
_GONE = (FileNotFoundError, NotADirectoryError)


@dataclass(frozen=True)
class User:
    """A user of this machine; ``groups`` are those besides the first one."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str

    @classmethod
    def named(cls, name: str) -> User:
        """Look one up. Raises KeyError."""
        found = pwd.getpwnam(name)
        groups = tuple(os.getgrouplist(name, found.pw_gid))
        return cls(name, found.pw_uid, found.pw_gid, groups, found.pw_dir)

    @property
    def variables(self) -> dict[str, str]:
        """Who programs are told that they run as; a home that is not theirs is none."""
        home = Path(self.home)
        owned = home.is_dir() and home.stat().st_uid == self.uid
        return {"USER": self.name, "LOGNAME": self.name, "HOME": self.home if owned else "/nonexistent"}


def own_home() -> Path:
    """Return this process's home directory; one that is not there when it has none."""
    try:
        return Path.home()
    except RuntimeError:  # no HOME, and nobody of this number is known
        return Path("/nonexistent")


def give(root: Path, user: User) -> None:
    """Make a tree the user's, what lies in a directory before the directory itself.

    Until then nobody but us can put anything into it: not even programs of that user that run already.
    """
    for directory in reversed(list(_directories(root))):
        _own_content(directory, user.uid, user.gid)
    os.chown(root, user.uid, user.gid, follow_symlinks=False)


def take_back(root: Path) -> None:
    """Make a tree ours again, a directory before what lies in it: other programs of the user may be running."""
    uid, gid = os.geteuid(), os.getegid()
    os.chown(root, uid, gid, follow_symlinks=False)
    for directory in _directories(root):
        _own_content(directory, uid, gid)


def _directories(root: Path) -> Iterator[str]:
    """Yield a directory and all below it, each before it is looked into."""
    waiting = [f"{os.path.realpath(root.parent)}/{root.name}"]
    while waiting:
        directory = waiting.pop()
        yield directory
        with suppress(*_GONE), _opened(directory) as fd, os.scandir(fd) as entries:
            waiting += [f"{directory}/{entry.name}" for entry in entries if entry.is_dir(follow_symlinks=False)]


def _own_content(directory: str, uid: int, gid: int) -> None:
    with suppress(*_GONE), _opened(directory) as fd:
        for name in os.listdir(fd):
            with suppress(*_GONE):
                os.chown(name, uid, gid, dir_fd=fd, follow_symlinks=False)


@contextmanager
def _opened(directory: str) -> Iterator[int]:
    """Open a directory, and not what a link leads to that somebody has put in its place or in that of one above."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if os.readlink(f"/proc/self/fd/{fd}") != directory:  # noqa: PTH115
            raise NotADirectoryError(errno.ENOTDIR, "there is a link in its place", directory)
        yield fd
    finally:
        os.close(fd)
