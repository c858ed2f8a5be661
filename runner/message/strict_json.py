"""JSON from strangers: what Python's reader lets pass beyond RFC 8259, or cannot bear, is refused."""

from __future__ import annotations

import json
import math
import reprlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

# Levels of arrays and objects: more than anybody writes by hand, few enough for every recursion over the result.
MAX_DEPTH = 64

# Digits of an integer: Python refuses to convert more than 4300, its early 3.10 releases take minutes over millions.
_MAX_DIGITS = 1000


class NotJson(ValueError):
    """The text is none, or not yet."""


def loads(text: str, *, most: int = 0) -> Any:
    """Return the value that ``text`` is. Raises ValueError, which repeats nothing of the text but a member's name.

    Besides what is no JSON (NotJson) these are refused: NaN and Infinity, also as the value of a number like 1e999,
    integers of absurd length, members given twice in one object, more levels than MAX_DEPTH, and more values than
    about ``most``, before they take any memory (0: any number).
    """
    if most and text.count(",") + text.count("[") + text.count("{") > most:
        raise ValueError(f"has more than {most} values")
    try:
        value = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        what = error.msg[:1].lower() + error.msg[1:]
        raise NotJson(f"is not JSON: {what} at line {error.lineno}, column {error.colno}") from None
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    if nests_deeper(value, MAX_DEPTH):
        raise ValueError(_TOO_DEEP)
    return value


def nests_deeper(value: object, levels: int) -> bool:
    """Tell whether ``value`` has more than that many levels of arrays and objects; a number or text has none."""
    level = [value] if isinstance(value, (dict, list)) else []
    for _ in range(levels):
        children = (child for parent in level for child in (parent.values() if isinstance(parent, dict) else parent))
        level = [child for child in children if isinstance(child, (dict, list))]
        if not level:
            break
    return bool(level)


_TOO_DEEP = f"has more than {MAX_DEPTH} levels of JSON arrays and objects"


def _constant(name: str) -> Any:
    raise ValueError(f"has the number {name}, which JSON does not have")


def _float(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise ValueError("has a number that is too large")
    return number


def _int(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise ValueError(f"has a number of {len(digits)} digits")
    return int(digits)


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        ((twice, _),) = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"has the member {reprlib.repr(twice)} twice in one object")
    return members


_DECODER = json.JSONDecoder(parse_constant=_constant, parse_float=_float, parse_int=_int, object_pairs_hook=_object)
