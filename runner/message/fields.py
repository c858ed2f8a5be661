"""Members of somebody else's JSON, read one by one: what is wrong with them is gathered, with their paths."""

from __future__ import annotations

import json
import re
import reprlib
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from runner.units import parse_duration

T = TypeVar("T")

SHOWN = reprlib.Repr()
SHOWN.maxstring = 60


class Fields:
    """One JSON object of the message. What is wrong with its members is added to ``faults``, by their path.

    A null is the same as nothing, and so is an empty text where a number, a duration or a name is wanted: writers in
    Go send them for what they do not have. A member with a fault reads as if it were not there.
    """

    def __init__(self, members: Mapping[str, Any], path: str, faults: list[str]) -> None:
        self.members, self._path, self.faults = members, path, faults

    def fault(self, name: str, what: str) -> None:
        """Add a fault; ``what`` goes on after the member's name."""
        self.faults.append(f"{self._path}{name}: {what}")

    def has(self, name: str) -> bool:
        """Tell whether there is something, right or wrong."""
        return self.members.get(name) is not None

    def typed(self, name: str, kind: type[T]) -> T | None:
        """Return a member of this very type."""
        value = self.members.get(name)
        if value is None or isinstance(value, kind):
            return value
        # The value is not told: what should have been an object of credentials may be a text of them.
        self.fault(name, f"is {_KINDS.get(type(value), 'a number')}, but must be {_KINDS[kind]}")
        return None

    def child(self, name: str) -> Fields:
        """Return a member that is an object; one without members where there is none."""
        return Fields(self.typed(name, dict) or {}, f"{self._path}{name}.", self.faults)

    def parsed(self, name: str, parse: Callable[[Any], T], default: T) -> T:
        """Return what ``parse`` makes of a text or number; its ValueErrors become faults."""
        return self.parse(name, self.members.get(name), parse, default)

    def parse(self, name: str, value: object, parse: Callable[[Any], T], default: T) -> T:
        """Do the same with a value that is not a member itself."""
        if value is None or value == "":
            return default
        try:
            if isinstance(value, bool) or not isinstance(value, (str, int, float)):
                raise ValueError(f"is {_KINDS[type(value)]}, but must be a text or a number")
            return parse(value)
        except ValueError as error:
            self.fault(name, str(error))
            return default

    def text(self, name: str) -> str:
        """Return a text, "" where there is none."""
        return self.parsed(name, text_of, "")

    def duration(self, name: str) -> float | None:
        """Return seconds. A duration of nothing means the same as in the runner's own options: no limit."""
        return self.parsed(name, parse_duration, 0.0) or None

    def required(self, name: str) -> str:
        """Return a text; it is a fault where there is none."""
        if self.members.get(name) in (None, ""):
            self.fault(name, "is missing")
        return self.text(name)


_KINDS: dict[type, str] = {dict: "an object", list: "a list", str: "a text", bool: "true or false"}


# Texts and numbers: each returns a value or raises ValueError


def text_of(value: str | float) -> str:
    """A text, and not a number."""
    if not isinstance(value, str):
        raise ValueError("is a number, but must be a text")
    return word_of(value)


def word_of(value: str | float) -> str:
    """A text, or a number as JSON writes it."""
    text = value if isinstance(value, str) else json.dumps(value)
    if not is_text(text):
        raise ValueError("has a NUL, or half of a character, in it")
    return text


def is_text(text: str) -> bool:
    """Tell whether this can be told to the system; JSON can carry half of a surrogate pair."""
    return "\0" not in text and text == text.encode(errors="replace").decode()


def secret_of(value: str | float) -> str:
    """Something that goes into an HTTP header. Its faults never show it."""
    text = text_of(value)
    if not re.fullmatch(r"[!-~]*", text):
        raise ValueError("has characters that no key, token or region has")
    return text


def version_of(value: str | float) -> str:
    """A version of Python, or its beginning."""
    text = word_of(value)
    if not re.fullmatch(r"[0-9]{1,4}(\.[0-9]{1,4}){0,2}", text):
        raise ValueError(f"is {SHOWN.repr(value)}, but must be a Python version such as 3, 3.11 or 3.11.4")
    return text


def sha256_of(value: str | float) -> str:
    """A SHA-256 in hexadecimal."""
    if not re.fullmatch(r"[0-9A-Fa-f]{64}", text_of(value)):
        raise ValueError(f"is {SHOWN.repr(value)}, but must be a SHA-256: 64 hexadecimal digits")
    return str(value)


def count_of(value: str | float) -> int:
    """A whole number, which some clients write as a text."""
    whole = int(value) if isinstance(value, float) and value.is_integer() else value
    if not re.fullmatch(r"[0-9]{1,6}", str(whole)):
        raise ValueError(f"is {SHOWN.repr(value)}, but must be a whole number from 0 to 999999")
    return int(whole)


def moment_of(value: str | float) -> float:
    """A time in seconds since 1970."""
    # The upper limit, the year 5138, keeps all sums with durations finite.
    if isinstance(value, str) or not 0 <= value <= 1e11:
        raise ValueError(f"is {SHOWN.repr(value)}, but must be a number of seconds since 1970")
    return float(value)


def printable(text: str) -> bool:
    """Tell whether a text stays in its line wherever it is shown."""
    return not re.search(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", text)
