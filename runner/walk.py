"""One walk over a tree of files, for whoever measures it."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path


def walk(root: Path, *, leaving_out: type[OSError] = FileNotFoundError) -> Iterator[tuple[str, os.stat_result]]:
    """Yield path and status of ``root`` and of all that is in it, a directory before its content, in no other order.

    No symbolic link is followed. What ``leaving_out`` is raised for is left out: by default what vanishes meanwhile.
    Raises other OSErrors. Whoever may write to the tree can put a link in a directory's place while that is entered:
    where it would matter, see ``artifacts/walking.py``.
    """
    with suppress(leaving_out):
        status = os.lstat(root)
        yield str(root), status
        if stat.S_ISDIR(status.st_mode):
            yield from _below(str(root), leaving_out)


def _below(root: str, leaving_out: type[OSError]) -> Iterator[tuple[str, os.stat_result]]:
    waiting = [root]
    while waiting:
        with suppress(leaving_out), os.scandir(waiting.pop()) as entries:
            for entry in entries:
                with suppress(leaving_out):
                    status = entry.stat(follow_symlinks=False)
                    yield entry.path, status
                    if stat.S_ISDIR(status.st_mode):
                        waiting.append(entry.path)
