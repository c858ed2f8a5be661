"""The client's own record of an experiment, ``experiments/<key>`` in its database bucket (protocol section 5).

``studio`` clients read there how an experiment is doing, and write ``stopped`` there to stop it. All of it is best
effort: a store that fails costs a line in the debug log.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any

from runner.attempt.watch import Watch
from runner.attempt.worker import Worker
from runner.errors import RunnerError
from runner.loop import Loop
from runner.message import request
from runner.storage.base import NotFound
from runner.storage.stores import Stores

log = logging.getLogger(__name__)

# A client's record is a few kilobytes; anything much larger is not one. In bytes.
_LARGEST = 16 * 1024 * 1024
# How often the record is looked at for a request to stop. In seconds.
_POLL = 10.0

PATIENCE, LAST_PATIENCE = 5.0, 30.0
"""How long the record's store may fail while the attempt goes on, and when the last word is written. In seconds."""


class Record:
    """One experiment's record. A record that the client did not make, or has removed, is not made here.

    ``reached``: its store has answered.
    """

    def __init__(self, where: request.Record, stores: Stores) -> None:
        self._where, self._stores = where, stores
        self.reached = False

    def read(self) -> dict[str, Any]:
        """Return the record, {} when there is none. Raises RunnerError."""
        location = self._where.location
        try:
            with self._stores.reach(location, self._where.credentials).open(location.key) as stored:
                found = json.loads(stored.stream.read(_LARGEST))
        except (NotFound, ValueError, RecursionError):
            found = {}
        self.reached = True
        return found if isinstance(found, dict) else {}

    def write(self, record: dict[str, Any]) -> None:
        """Replace the record. Raises RunnerError."""
        location = self._where.location
        with self._stores.reach(location, self._where.credentials).create(location.key) as out:
            out.write(json.dumps(record).encode())

    def update(self, status: str, **members: Any) -> str:
        """Bring the record up to date, and return the status that it had, "" when it could not be learnt.

        A record that says ``stopped`` is left alone while the experiment is only waiting or running.
        """
        try:
            record = self.read()
            before = str(record.get("status") or "")
            if record and (before != "stopped" or status in ("finished", "stopped")):
                self.write({**record, "status": status, **members})
        except RunnerError as error:
            log.debug("the client's record cannot be updated: %s", error)
            return ""
        return before

    def status(self) -> str:
        """Return the status, "" when it cannot be learnt."""
        try:
            return str(self.read().get("status") or "")
        except RunnerError as error:
            log.debug("the client's record cannot be read: %s", error)
            return ""


class Bookkeeping:
    """Keeps the record while an attempt runs, and tells when the client has stopped the experiment.

    Stores are talked to in a thread of its own, so that no upload keeps the client waiting. Does nothing for a request
    that names no record. The record may be where only the client can reach it, so ``stores`` should have little
    patience; ``lasting`` ones write the last word where the record was reached before.
    """

    def __init__(
        self,
        where: request.Record | None,
        stores: Stores,
        loop: Loop,
        *,
        stopped: Callable[[], object],
        lasting: Stores | None = None,
    ) -> None:
        self._record = Record(where, stores) if where else None
        self._lasting = Record(where, lasting or stores) if where else None
        self._loop, self._worker, self._stopped = loop, Worker(loop), stopped
        self._noted: dict[str, object] = {}
        self._over = False

    def begin(self) -> None:
        """The attempt begins: look whether the client has stopped the experiment, and again until its end."""
        self._poll()

    def note(self, status: str, **members: object) -> None:
        """Bring the record up to date."""
        self._noted |= members
        if self._record:
            self._worker.call(partial(self._in_time, partial(self._record.update, status, **members)), self._heed)

    def end(self) -> None:
        """The experiment has ended: a request to stop comes too late."""
        self._over = True

    def settle(self, watch: Watch, status: str, **members: object) -> None:
        """Write the last word, with all that was noted, and wait until it is written."""
        if self._record and self._lasting:
            record = self._lasting if self._record.reached else self._record
            self._worker.wait(partial(record.update, status, **{**self._noted, **members}), watch)

    def _poll(self) -> None:
        if self._record and not self._over:
            if not self._worker.busy:
                self._worker.call(partial(self._in_time, self._record.status), self._heed)
            self._loop.call_later(_POLL, self._poll)

    def _in_time(self, action: Callable[[], str]) -> str:
        """In the worker's thread: what has waited until the end is overtaken by the last word."""
        return "" if self._over else action()

    def _heed(self, status: Future[str]) -> None:
        if status.result() == "stopped":
            self._stopped()
