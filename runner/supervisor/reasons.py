"""Why a queue's messages do not run: a log line when that changes, and a file for ``studio-runner explain``."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from runner.machine import procfs
from runner.queues import carries_reports

log = logging.getLogger(__name__)

# So many queues are named in a line of the log.
_NAMED = 5


class Reasons:
    """The reasons of one runner, kept in ``<home>/runners/<process>.json``; about each queue one.

    ``about`` is what else there is to know of this runner. The file is best effort.
    """

    def __init__(self, home: Path, about: dict[str, Any]) -> None:
        self._path = home / "runners" / f"{procfs.birth(os.getpid())}.json"
        self._about = about
        self._reasons: dict[str, tuple[str, str]] = {}
        self._queues: set[str] = set()
        self._nothing = ""
        self._changed = True

    def tell(self, queue: str, why: str, until: str = "", *, logged: bool = False) -> None:
        """Give the reason for a queue, and how long it holds, which by itself is no news; ``logged``: it is known."""
        if not logged and self._reasons.get(queue, ("", ""))[0] != why:
            log.info("queue %s: %s", queue, "; ".join(filter(None, (why, until))), extra={"queue": queue})
        if self._reasons.get(queue) != (why, until):
            self._reasons[queue] = (why, until)
            self._changed = True

    def of(self, queue: str) -> str:
        """Return the reason for a queue, with how long it holds; "" if there is none."""
        return "; ".join(filter(None, self._reasons.get(queue, ())))

    def clear(self, queue: str) -> None:
        """There is none any more."""
        if self._reasons.pop(queue, None):
            self._changed = True

    def known(self, queues: Collection[str]) -> None:
        """These queues are read for work; nothing is remembered of others."""
        if self._queues != set(queues):
            self._queues, self._changed = set(queues), True
            self._reasons = {queue: reason for queue, reason in self._reasons.items() if queue in self._queues}

    def searched(self, others: Collection[str]) -> None:
        """All servers know their queues, of which ``others`` are not read: log when none is, and why."""
        nothing = "" if self._queues else _nothing(others, self._about)
        if nothing and nothing != self._nothing:
            log.info("no queue is read for work: %s", nothing)
        self._nothing = nothing

    def note(self, **about: Any) -> None:
        """Bring up to date what else there is to know."""
        if any(self._about.get(name) != value for name, value in about.items()):
            self._about.update(about)
            self._changed = True

    def save(self) -> None:
        """Write the file, if there is news."""
        if not self._changed:
            return
        self._changed = False
        queues = {queue: self.of(queue) for queue in sorted(self._queues)}
        draft = self._path.with_suffix(".part")
        try:
            self._path.parent.mkdir(exist_ok=True, mode=0o700)  # others may come by: see --run-as
            draft.write_text(json.dumps({**self._about, "queues": queues}))
            draft.replace(self._path)
        except OSError as error:
            log.debug("%s cannot be written: %s", self._path, error.strerror)

    def close(self) -> None:
        """Remove the file."""
        self._path.unlink(missing_ok=True)


def _nothing(others: Collection[str], about: dict[str, Any]) -> str:
    """Say why no queue is read, when only others are there."""
    work = sorted(name for name in others if not carries_reports(name))
    there = (
        f"there are only {', '.join(work[:_NAMED])}{' and others' if work[_NAMED:] else ''}"
        if work
        else "there is none"
    )
    if about["names"]:
        return f"{there}, and --queue names {', '.join(about['names'])}"
    if not work:
        return f"{there} yet"
    spared = f" and not --queue-mismatch {about['mismatch']}" if about["mismatch"] else ""
    return f"{there}, and none matches --queue-match {about['match']}{spared}"


def runners(home: Path) -> Iterator[dict[str, Any]]:
    """Yield what the runners say that work in ``home``; the files of those that died are removed."""
    for path in sorted((home / "runners").glob("*.json")):
        if procfs.birth(int(path.stem.partition("-")[0])) != path.stem:
            path.unlink(missing_ok=True)
            continue
        try:
            yield {"process": path.stem.partition("-")[0], **json.loads(path.read_text())}
        except (OSError, ValueError):
            continue
