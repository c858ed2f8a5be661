"""Another user for experiments than the runner's own: what they must not touch then is kept from them by the kernel."""

from __future__ import annotations

import os
import pwd
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path


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


def give(root: Path, user: User) -> None:
    """Make a tree the user's; nobody else may be changing it."""
    _own(root, user.uid, user.gid)


def take_back(root: Path) -> None:
    """Make a tree ours again; none of the user's programs may be running in it."""
    _own(root, os.geteuid(), os.getegid())


def _own(root: Path, uid: int, gid: int) -> None:
    os.chown(root, uid, gid, follow_symlinks=False)
    waiting = [str(root)] if root.is_dir() and not root.is_symlink() else []
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):
                    os.chown(entry.path, uid, gid, follow_symlinks=False)
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
