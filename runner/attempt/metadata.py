"""The metadata document: what an experiment prints of itself, and what the runner knows of it (protocol section 6)."""

from __future__ import annotations

import json
import string
from datetime import datetime
from typing import Any

from runner.attempt.json_patch import PatchError, apply, equal, merge
from runner.message.strict_json import loads

# A longer line is text, whatever it looks like. In characters.
_LONGEST_JSON = 1024 * 1024
# What one line may do, so that no line takes long: operations, and characters of JSON that they copy or move.
_MOST_OPERATIONS = 1000
_MOST_COPIED = 256 * 1024
# What experiments may add to the document, in characters of JSON; and how exactly that is kept account of.
_LARGEST = 12 * 1024 * 1024
_UNCERTAINTY = 1024 * 1024
# The log keeps the newest lines: so many, together so many characters, of each so many.
_LOG_LINES = 10_000
_LOG_SIZE = 4 * 1024 * 1024
_LOG_LINE = 8 * 1024

_BASE62 = string.digits + string.ascii_uppercase + string.ascii_lowercase


def accession(host: str, started: float, *, nth: int = 0) -> str:
    """Name an attempt by its host and its start, in seconds since 1970; a host's names sort by time.

    ``nth`` tells apart the attempts of one second: the first one, 0, has the plain name of the protocol.
    """
    return f"{host}-{_base62(int(started))}" + (f"-{_base62(nth)}" if nth else "")


def _base62(number: int) -> str:
    digits = _BASE62[number % 62]
    while number := number // 62:
        digits = _BASE62[number % 62] + digits
    return digits


class Document:
    """One attempt's metadata. ``skipped`` counts lines of JSON that did not apply, ``dropped`` lines the log has lost.

    Each line applies as a whole or not at all. Whatever an experiment prints, the document's size and depth, and the
    time that a line takes, have limits.
    """

    def __init__(self, *, schema_logs: bool) -> None:
        self.skipped = 0
        self.dropped = 0
        self._schema_logs = schema_logs
        self._log: list[Any] = [{"ts": "0", "msg": "Init"}, {"ts": "1", "msg": ""}]
        self._log_size = sum(map(_weight, self._log))
        self._root: dict[str, Any] = {"studioml": {"log": self._log}}
        # At least the size of what lines have added; what of that was not measured, but only added up.
        self._size = 0
        self._added = 0

    def feed(self, line: str, now: datetime) -> bool:
        """Take one whole line of the output; return whether it was JSON that is part of the document now."""
        value = _json(line)
        try:
            if isinstance(value, dict):
                self._adopt(merge(self._root, value), len(line))
            elif _is_patch(value):
                copies = any(each["op"] in ("copy", "move") for each in value)
                self._adopt(self._patched(value), len(line) + copies * _MOST_COPIED)
            else:
                if self._schema_logs:
                    self._say(line, now)
                return False
        except PatchError:
            self.skipped += 1
            return False
        return True

    def studioml(self, **members: object) -> None:
        """Set members of ``/studioml``: the runner's own."""
        self._root = {**self._root, "studioml": {**self._root["studioml"], **members}}

    def to_json(self) -> bytes:
        """Write the document down."""
        return json.dumps(self._root, ensure_ascii=False).encode(errors="replace")

    def _patched(self, operations: list[Any]) -> Any:
        if len(operations) > _MOST_OPERATIONS or not all(map(_may, operations)):
            raise PatchError("the patch is too long, or does more than add to /studioml")
        return apply(self._root, operations, allowance=_MOST_COPIED)

    def _adopt(self, root: Any, growth: int) -> None:
        """Let ``root``, which is larger by ``growth`` at most, be the document. Raises PatchError when it must not."""
        if not isinstance(root, dict) or not _extends(self._root["studioml"], root.get("studioml")):
            raise PatchError("below /studioml an experiment may only add")
        size, added = self._size + growth, self._added + growth
        # Lines often replace what others have added. Measuring is slow, so it has to be worth it.
        if size > _LARGEST and added > _UNCERTAINTY:
            size, added = len(json.dumps(root)), 0
        if size > _LARGEST:
            raise PatchError("the document is full")
        self._root, self._size, self._added = root, size, added
        if root["studioml"]["log"] is not self._log:
            self._log = root["studioml"]["log"]
            self._log_size = sum(map(_weight, self._log))
            self._trim()

    def _say(self, line: str, now: datetime) -> None:
        entry = {"ts": now.isoformat(), "msg": line[:_LOG_LINE]}
        # The list is nobody else's: patches copy what they change.
        self._log.append(entry)
        self._log_size += _weight(entry)
        self._trim()

    def _trim(self) -> None:
        excess = 0
        while len(self._log) - excess > _LOG_LINES or self._log_size > _LOG_SIZE:
            self._log_size -= _weight(self._log[excess])
            excess += 1
        del self._log[:excess]
        self.dropped += excess


def _json(line: str) -> Any:
    """Return the object or array that a line is; None for a line of text."""
    if len(line) > _LONGEST_JSON or line.lstrip()[:1] not in ("{", "["):
        return None
    try:
        return loads(line)
    except ValueError:
        return None


def _is_patch(value: Any) -> bool:
    return isinstance(value, list) and value != [] and all(isinstance(each, dict) and "op" in each for each in value)


def _may(operation: dict[str, Any]) -> bool:
    """Tell whether an experiment may do this: below /studioml only ``add``, which ``_extends`` looks at again."""
    path = operation.get("path")
    ours = isinstance(path, str) and (path == "/studioml" or path.startswith("/studioml/"))
    return not ours or operation["op"] in ("add", "test")


def _extends(old: Any, new: Any) -> bool:
    """Tell whether ``new`` has all that ``old`` has, where it was. What they share costs nothing."""
    if old is new:
        return True
    if isinstance(old, dict) and isinstance(new, dict):
        return all(name in new and _extends(value, new[name]) for name, value in old.items())
    if isinstance(old, list) and isinstance(new, list):
        return len(old) <= len(new) and all(map(_extends, old, new))
    return equal(old, new)


def _weight(entry: Any) -> int:
    """Roughly how many characters an entry of the log takes."""
    message = entry.get("msg") if isinstance(entry, dict) else None
    return 64 + (len(message) if isinstance(message, str) else 0)
