"""Signed messages that were completed here: whoever has a copy of one must not have it run again.

Each is an empty file in a directory that the runners of a machine share; its time is that until which it counts.
"""

from __future__ import annotations

import logging
import os
import time
from contextlib import suppress
from pathlib import Path

log = logging.getLogger(__name__)

# How long a message is remembered that has no lifetime of its own, in seconds.
_REMEMBERED = 30 * 86400.0
# So many are remembered, each in some hundred bytes of directory and inode. Then those go whose time is over first.
_MOST = 20_000
# After so many more it is time to look for those whose time is over.
_TIDY = 1000


class Replays:
    """The memory, in a directory; best effort, for most copies are known by the lease too. Times are since 1970."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._added = 0

    def add(self, name: str, until: float) -> None:
        """Remember a message for its lifetime, which may be infinite."""
        until = min(until, time.time() + _REMEMBERED)
        path = self._directory / name
        try:
            self._directory.mkdir(mode=0o700, exist_ok=True)
            path.touch()
            os.utime(path, (until, until))
        except OSError as error:
            log.warning("%s cannot be written, so a copy of a completed message may run: %s", path, error.strerror)
        self._added += 1
        if self._added % _TIDY == 1:
            self.tidy(time.time())

    def seen(self, name: str) -> bool:
        """Tell whether a message was completed here, and is still in its lifetime."""
        try:
            return (self._directory / name).stat().st_mtime >= time.time()
        except OSError:
            return False

    def tidy(self, now: float) -> None:
        """Forget those whose time is over, and those that are too many."""
        with suppress(OSError), os.scandir(self._directory) as entries:
            found = sorted((entry.stat().st_mtime, entry.path) for entry in entries)
            kept = [path for until, path in found if until >= now][-_MOST:]
            for path in {path for _, path in found} - set(kept):
                Path(path).unlink()
