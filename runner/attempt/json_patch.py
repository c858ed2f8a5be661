"""Changes to JSON documents: merge patches (RFC 7386) and patches (RFC 6902).

Pure: what is given is never changed. Containers on the way to a change are copied, all others are shared with the
result, so that a small change of a large document is cheap.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from runner.errors import RunnerError
from runner.message.strict_json import MAX_DEPTH, nests_deeper


class PatchError(RunnerError):
    """The patch does not apply to the document, or is none."""


def merge(target: Any, patch: Any) -> Any:
    """Return what ``patch`` makes of ``target``: https://www.rfc-editor.org/rfc/rfc7386#section-2."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = merge(merged.get(name), value)
    return merged


def apply(document: Any, operations: Sequence[Any], *, allowance: float = math.inf) -> Any:
    """Return what the operations make of ``document``: https://www.rfc-editor.org/rfc/rfc6902#section-4.

    Raises PatchError, also when the document would have more than MAX_DEPTH levels, or when more than ``allowance``
    characters of JSON would be copied or moved inside it.
    """
    for operation in operations:
        verb = _verb(operation)
        path = _pointer(operation, "path")
        if verb in ("copy", "move"):
            origin = _pointer(operation, "from")
            text = _written(_find(document, origin), allowance)
            allowance -= len(text)
            document = _moved(document, origin, path) if verb == "move" else document
            # A copy of its own: what the result has in two places must not be one list for whoever appends to it.
            document = _add(document, path, json.loads(text))
        else:
            document = _VERBS[verb](document, path, operation.get("value"))
    return document


def _written(value: Any, allowance: float) -> str:
    """Write a value as JSON, and stop when it gets too long."""
    chunks = []
    for chunk in _ENCODER.iterencode(value):
        allowance -= len(chunk)
        if allowance < 0:
            raise PatchError("the patch copies or moves too much")
        chunks.append(chunk)
    return "".join(chunks)


_ENCODER = json.JSONEncoder(check_circular=False)


def _verb(operation: Any) -> str:
    verb = operation.get("op") if isinstance(operation, Mapping) else None
    if not isinstance(verb, str) or (verb not in _VERBS and verb not in ("copy", "move")):
        raise PatchError("an operation of a patch must be an object whose op is one of RFC 6902")
    if verb in ("add", "replace", "test") and "value" not in operation:
        raise PatchError(f"the operation {verb} has no value")
    return verb


def _pointer(operation: Mapping[str, Any], name: str) -> list[str]:
    """Split a JSON pointer into its tokens: https://www.rfc-editor.org/rfc/rfc6901."""
    text = operation.get(name)
    if not isinstance(text, str) or (text and not text.startswith("/")) or re.search("~(?![01])", text):
        raise PatchError(f"{name} must be a JSON pointer")
    return [token.replace("~1", "/").replace("~0", "~") for token in text.split("/")[1:]]


def _find(document: Any, path: Sequence[str]) -> Any:
    for token in path:
        document = document[_existing(document, token)]
    return document


def _existing(container: Any, token: str) -> Any:
    """Return the key or index under which ``container`` has a value for ``token``."""
    if isinstance(container, dict) and token in container:
        return token
    if isinstance(container, list):
        return _index(token, len(container) - 1)
    raise PatchError("there is nothing at this path")


def _index(token: str, last: int) -> int:
    if not re.fullmatch("0|[1-9][0-9]{0,8}", token) or int(token) > last:
        raise PatchError("there is no such element")
    return int(token)


def _changed(document: Any, path: Sequence[str], change: Callable[[Any, str], None]) -> Any:
    """Return ``document`` with ``change`` made to a copy of the container that the path's last token is for."""
    if not isinstance(document, (dict, list)):
        raise PatchError("there is nothing at this path")
    copy: Any = document.copy()
    if len(path) == 1:
        change(copy, path[0])
    else:
        place = _existing(document, path[0])
        copy[place] = _changed(document[place], path[1:], change)
    return copy


def _add(document: Any, path: Sequence[str], value: Any) -> Any:
    def insert(container: Any, place: str) -> None:
        if isinstance(container, dict):
            container[place] = value
        else:
            container.insert(len(container) if place == "-" else _index(place, len(container)), value)

    return _put(document, path, value, insert)


def _replace(document: Any, path: Sequence[str], value: Any) -> Any:
    def assign(container: Any, place: str) -> None:
        container[_existing(container, place)] = value

    return _put(document, path, value, assign)


def _put(document: Any, path: Sequence[str], value: Any, change: Callable[[Any, str], None]) -> Any:
    if nests_deeper(value, MAX_DEPTH - len(path)):
        raise PatchError("the document would have too many levels")
    return _changed(document, path, change) if path else value


def _remove(document: Any, path: Sequence[str], _value: Any = None) -> Any:
    def delete(container: Any, place: str) -> None:
        del container[_existing(container, place)]

    if not path:
        raise PatchError("the document itself cannot be removed")
    return _changed(document, path, delete)


def _test(document: Any, path: Sequence[str], value: Any) -> Any:
    if not equal(_find(document, path), value):
        raise PatchError("a test failed")
    return document


def _moved(document: Any, origin: Sequence[str], path: Sequence[str]) -> Any:
    if path[: len(origin)] == origin and path != origin:
        raise PatchError("a value cannot be moved into itself")
    return _remove(document, origin) if origin else document


_VERBS: dict[str, Callable[[Any, Sequence[str], Any], Any]] = {
    "add": _add,
    "remove": _remove,
    "replace": _replace,
    "test": _test,
}


def equal(one: Any, other: Any) -> bool:
    """Compare as JSON does: 1 is 1.0, but not true."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(equal(value, other[name]) for name, value in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(equal, one, other))
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)
