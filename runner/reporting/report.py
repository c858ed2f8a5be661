"""What is reported of an experiment: the ``Report`` message as JSON (protocol section 7).

The mapping from proto3 is https://protobuf.dev/programming-guides/json/: fields that have their default value are left
out, a time is RFC 3339 in UTC, an enumeration's value is its name.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from enum import Enum
from typing import Any

LONGEST = 64 * 1024
"""The longest text that is reported whole, in bytes of UTF-8."""

_CUT = " … (cut off: it is longer than 64 KiB)"


class Severity(Enum):
    """How serious a log entry is, by the names of the ``LogSeverity`` enumeration."""

    DEFAULT = "Default"
    TRACE = "Trace"
    DEBUG = "Debug"
    INFO = "Info"
    WARNING = "Warning"
    ERROR = "Error"
    FATAL = "Fatal"


class State(Enum):
    """How far an experiment is, by the names of the ``TaskState`` enumeration."""

    PRESTART = "Prestart"
    STARTED = "Started"
    STOPPING = "Stopping"
    FAILED = "Failed"
    SUCCESS = "Success"


@dataclass(frozen=True)
class Reporter:
    """Writes the reports of one attempt, as UTF-8.

    The three names are the experimenter's for the experiment, the attempt's accession and the host's; "" is left out.
    ``at`` is in seconds since 1970, and now if it is not given.
    """

    experiment_id: str
    unique_id: str
    executor_id: str

    def named(self, unique_id: str) -> Reporter:
        """Return the reporter of another attempt."""
        return replace(self, unique_id=unique_id)

    def text(self, text: str, *, at: float | None = None) -> bytes:
        """Report a text without more."""
        return self._report(at, "text", _cut(text))

    def logging(
        self, message: str, severity: Severity, fields: Mapping[str, str] | None = None, *, at: float | None = None
    ) -> bytes:
        """Report a line of a log."""
        entry = {
            "severity": _unless(severity, Severity.DEFAULT),
            "message": _cut(message),
            "fields": {_cut(name): _cut(value) for name, value in (fields or {}).items()} or None,
        }
        return self._report(at, "logging", entry)

    def json(self, document: str, *, at: float | None = None) -> bytes:
        """Report a JSON text that the experiment wrote; one that is too long to be whole is reported as a log line."""
        if len(document.encode(errors="replace")) > LONGEST:
            return self.logging(document, Severity.INFO, at=at)
        return self._report(at, "progress", {"json": _cut(document), "state": State.STARTED.value})

    def progress(self, state: State, error: str = "", *, code: int = 0, at: float | None = None) -> bytes:
        """Report that an experiment has come so far; the error is left out if it has neither words nor code."""
        fault = {"msg": _cut(error) or None, "code": code or None} if error or code else None
        return self._report(at, "progress", {"state": _unless(state, State.PRESTART), "error": fault})

    def _report(self, at: float | None, kind: str, content: str | dict[str, Any]) -> bytes:
        moment = _timestamp(time.time() if at is None else at)
        report = {
            "time": moment,
            "experimentId": _cut(self.experiment_id) or None,
            "uniqueId": _cut(self.unique_id) or None,
            "executorId": _cut(self.executor_id) or None,
            kind: {"time": moment, **content} if isinstance(content, dict) else content,
        }
        return json.dumps(_pruned(report), ensure_ascii=False, separators=(",", ":")).encode()


def _pruned(value: Any) -> Any:
    """Leave out what is None."""
    if not isinstance(value, dict):
        return value
    return {name: _pruned(member) for name, member in value.items() if member is not None}


def _unless(value: Severity | State, default: Severity | State) -> str | None:
    return None if value is default else str(value.value)


def _cut(text: str) -> str:
    """Return a text of bearable length that can be encoded: halves of surrogate pairs are replaced."""
    data = text.encode(errors="replace")
    if len(data) <= LONGEST:
        return data.decode()
    return data[: LONGEST - len(_CUT.encode())].decode(errors="ignore") + _CUT


def _timestamp(at: float) -> str:
    """Write a time with none, three or six digits after its seconds: as many as it needs, as protobuf does."""
    seconds, micros = divmod(round(at * 1_000_000), 1_000_000)
    whole = datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%dT%H:%M:%S")
    if not micros:
        return f"{whole}Z"
    return f"{whole}.{micros:06}Z" if micros % 1000 else f"{whole}.{micros // 1000:03}Z"
