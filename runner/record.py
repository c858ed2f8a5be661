"""The client's own record of an experiment, ``experiments/<key>`` in its database bucket (protocol section 5).

``studio`` clients read there how an experiment is doing, and write ``stopped`` there to stop it. All of it is best
effort: a store that fails costs a line in the debug log.
"""

from __future__ import annotations

import json
import logging
from typing import Any

from runner import request
from runner.errors import RunnerError
from runner.storage.base import NotFound
from runner.storage.stores import Stores

log = logging.getLogger(__name__)

# A client's record is a few kilobytes; anything much larger is not one. In bytes.
_LARGEST = 16 * 1024 * 1024


class Record:
    """One experiment's record. A record that the client did not make, or has removed, is not made here."""

    def __init__(self, where: request.Record, stores: Stores) -> None:
        self._where, self._stores = where, stores

    def read(self) -> dict[str, Any]:
        """Return the record, {} when there is none. Raises RunnerError."""
        location = self._where.location
        try:
            with self._stores.reach(location, self._where.credentials).open(location.key) as stored:
                found = json.loads(stored.stream.read(_LARGEST))
        except (NotFound, ValueError):
            return {}
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
