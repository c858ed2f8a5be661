"""The runner's log on standard error: one event a line, for people or as JSON, with levels as LOGXI names them.

Events about an experiment carry its key, queue and attempt, and may come from a level of their own (``about``).
"""

from __future__ import annotations

import json
import logging
import os
import sys
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, TypeAlias

from runner.secrets.masking import Secrets

Adapter: TypeAlias = "logging.LoggerAdapter[logging.Logger]"

LEVELS = {
    **{"TRC": logging.DEBUG, "DBG": logging.DEBUG, "INF": logging.INFO, "WRN": logging.WARNING, "ERR": logging.ERROR},
    **{"TRACE": logging.DEBUG, "DEBUG": logging.DEBUG, "INFO": logging.INFO, "WARN": logging.WARNING},
    **{"WARNING": logging.WARNING, "ERROR": logging.ERROR, "CRIT": logging.CRITICAL, "CRITICAL": logging.CRITICAL},
}
"""By the names of LOGXI, and by those of messages and options."""
FORMATS = ("happy", "text", "json")
"""For people, in colour on a terminal; for people; for programs."""

_LOGXI_NAMES = {logging.DEBUG: "DBG", logging.INFO: "INF", logging.WARNING: "WRN", logging.ERROR: "ERR"}
# What an event may carry, by the names of its attributes and members.
_FIELDS = ("experiment", "queue", "attempt")
_COLOURS = {logging.DEBUG: "2", logging.WARNING: "33", logging.ERROR: "31", logging.CRITICAL: "31"}
# Between the beginning of a line and where it goes on, in characters.
_INDENT = 4


_masked: dict[object, Secrets] = {}


def mask(whose: object, secrets: Secrets) -> None:
    """Mask secrets in the log from now on, in place of those that the same one had before."""
    _masked[whose] = secrets


def unmask(whose: object) -> None:
    """Forget the secrets of somebody who is gone."""
    _masked.pop(whose, None)


def _without_secrets(text: str) -> str:
    for secrets in list(_masked.values()):
        text = secrets.mask_text(text)
    return text


@dataclass(frozen=True)
class Style:
    """How the log is written. ``width``: longer lines are broken, in characters; 0 for never."""

    level: int = logging.INFO
    form: str = "happy"
    width: int = 0

    @classmethod
    def of(cls, environ: Mapping[str, str], *, level: str = "", form: str = "", debug: bool = False) -> Style:
        """Return what options and LOGXI variables ask for; the options win. What only LOGXI knows is ignored.

        LOGXI is ``*=DBG,other=ERR``, of which the level of the star counts; LOGXI_FORMAT is ``JSON``,
        ``text,maxcol=100``.
        """
        words = [word.strip() for word in environ.get("LOGXI_FORMAT", "").split(",")]
        forms = [word.lower() for word in words if word.lower() in FORMATS]
        widths = [word.partition("=")[2] for word in words if word.startswith("maxcol=")]
        return cls(
            LEVELS.get(level.upper())
            or _level_of(environ.get("LOGXI", ""))
            or (logging.DEBUG if debug else logging.INFO),
            form or (forms[-1] if forms else "happy"),
            int(widths[-1]) if widths and widths[-1].isdecimal() else 0,
        )

    def variables(self) -> dict[str, str]:
        """Return the variables that have another process write in the same way."""
        form = "JSON" if self.form == "json" else self.form
        level = _LOGXI_NAMES.get(self.level, "ERR")
        return {"LOGXI": f"*={level}", "LOGXI_FORMAT": f"{form},maxcol={self.width}" if self.width else form}


def _level_of(logxi: str) -> int | None:
    for rule in logxi.split(","):
        name, _, level = rule.strip().partition("=")
        if name == "*" and level.upper() in LEVELS:
            return LEVELS[level.upper()]
    return None


def start(style: Style) -> None:
    """Send the log to standard error; other packages' only from warnings up.

    Neither pika's, which repeats ours, nor urllib3's: it shows whole URLs, and those may be signed.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if style.form == "json" else _Lines(style, terminal=sys.stderr.isatty()))
    handler.addFilter(_Wanted(style))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    # What an experiment wants to be told may be less than others are; the filter has the last word.
    logging.getLogger("runner").setLevel(logging.DEBUG)
    for name in ("pika", "urllib3"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def about(log: logging.Logger, **fields: object) -> Adapter:
    """Return a log whose events carry these fields: ``experiment``, ``queue`` and ``attempt``.

    ``verbose`` is the level that the experiment's message asks for: events from there on are told, however little the
    runner tells of others. It never hides what the operator wants to see.
    """
    return logging.LoggerAdapter(log, fields)


def always_about(**fields: object) -> None:
    """Have all further events of this process carry these fields: see ``about``."""
    for each in _filters():
        each.fields = fields


def variables() -> dict[str, str]:
    """Return the variables that have another process write its log as this one does."""
    return next((each.style.variables() for each in _filters()), {})


def _filters() -> Iterator[_Wanted]:
    for handler in logging.getLogger().handlers:
        yield from (each for each in handler.filters if isinstance(each, _Wanted))


class _Wanted(logging.Filter):
    """Lets pass what is important enough."""

    def __init__(self, style: Style) -> None:
        super().__init__()
        self.style = style
        self.fields: Mapping[str, object] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        for name, value in self.fields.items():
            if not hasattr(record, name):
                setattr(record, name, value)
        verbose = LEVELS.get(str(getattr(record, "verbose", None)).upper())
        level = self.style.level
        return record.levelno >= (level if verbose is None else min(level, verbose))


class _Masked(logging.Formatter):
    """Writes an event in some form, ``text``, without the secrets in it."""

    def format(self, record: logging.LogRecord) -> str:
        return _without_secrets(self.text(record))

    def text(self, record: logging.LogRecord) -> str:
        """Write an event as it is."""
        raise NotImplementedError


class _Json(_Masked):
    """An object a line: time, level, message, and what else there is."""

    def text(self, record: logging.LogRecord) -> str:
        members: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": _without_secrets(record.getMessage()),  # before its own escapes are escaped once more
        }
        members |= {name: value for name in _FIELDS if (value := getattr(record, name, None)) is not None}
        if record.exc_info:
            members["exception"] = _without_secrets(self.formatException(record.exc_info))
        return json.dumps(members)


class _Lines(_Masked):
    """A line of text, which stays one whatever is in it; only tracebacks have more."""

    def __init__(self, style: Style, *, terminal: bool) -> None:
        super().__init__()
        self._width = style.width
        # In halves, a secret would not be found.
        self._broken = textwrap.TextWrapper(
            max(style.width, 2 * _INDENT),
            subsequent_indent=" " * _INDENT,
            break_long_words=False,
            break_on_hyphens=False,
        )
        self._coloured = terminal and style.form == "happy" and not os.environ.get("NO_COLOR")

    def text(self, record: logging.LogRecord) -> str:
        message = printable(_without_secrets(record.getMessage()))  # before they are broken in two
        line = f"{self.formatTime(record)} {record.levelname:7} {message}"
        if self._width:
            line = self._broken.fill(line)
        if self._coloured and record.levelno in _COLOURS:
            line = f"\x1b[{_COLOURS[record.levelno]}m{line}\x1b[0m"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def printable(text: str) -> str:
    """Write what strangers wrote so that it looks like no other line, and does nothing to a terminal."""
    return text if text.isprintable() else "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)
