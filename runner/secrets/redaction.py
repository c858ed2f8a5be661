"""What may be shown of a message: everything but its secrets; and which these are."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote

# Rather one harmless member too many than one secret too few.
_SECRET = re.compile(
    "secret|passw|passphrase|credential|token(?!iz)|private_?key|access_?key|api_?key|authorization|cookie|hook"
    "|connection_?string|bearer|(?<![a-z])jwt(?![a-z])",
    re.IGNORECASE,
)
_SECRET_VARIABLE = re.compile(f"{_SECRET.pattern}|key|auth|pass|sig|_pwd", re.IGNORECASE)

# What is shorter is hardly a secret where a name like AUTHOR only may say so.
_SHORTEST_MAYBE = 8
# What stands among credentials and may be known.
_NO_SECRET = ("region", "region_name", "profile", "profile_name", "type", "user")

_USERINFO = re.compile(r"(?<=//)[^/\s]*@")
_PARAMETER = re.compile(r"([?&])([^=&?#\s]*)=[^&?#\s]*")


def public(text: str) -> str:
    """Return ``text`` without what may be secret in URLs: user and password, and parameters such as a signature."""
    return _PARAMETER.sub(_public_parameter, _USERINFO.sub("", text))


def _public_parameter(match: re.Match[str]) -> str:
    return f"{match[1]}{match[2]}=" if _SECRET_VARIABLE.search(match[2]) else match[0]


def redacted(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of a message without its credentials, the secrets of its environment, and its queues' URLs."""
    copy: dict[str, Any] = _redacted(document)
    config = copy.get("config")
    if isinstance(config, dict):
        if isinstance(config.get("env"), dict):
            config["env"] = {name: config["env"][name] for name in config["env"] if not _SECRET_VARIABLE.search(name)}
        if isinstance(config.get("cloud"), dict):
            config["cloud"].pop("queue", None)
    return copy


def _redacted(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _redacted(member) for name, member in value.items() if not _SECRET.search(name)}
    if isinstance(value, list):
        return [_redacted(element) for element in value]
    if isinstance(value, str):
        return "(removed)" if "PRIVATE KEY-----" in value else public(value)
    return value


def secrets_of(document: Mapping[str, Any]) -> set[str]:
    """Return what ``redacted`` takes out of a message, as texts: keys, tokens and passwords, but not users' names."""
    found = set(_found(document))
    config = document.get("config")
    env = config.get("env") if isinstance(config, Mapping) else None
    if isinstance(env, Mapping):
        for name, value in env.items():
            found |= secrets_of_variable(name, value if isinstance(value, str) else str(value))
    return found


def secrets_of_variable(name: str, value: str) -> set[str]:
    """Return what is secret of a variable: all of it if its name says so, or what a URL in it has."""
    if _SECRET.search(name) or (_SECRET_VARIABLE.search(name) and _may_be_secret(value)):
        return {value, *_of_text(value)}
    return set(_of_text(value))


def _may_be_secret(value: str) -> bool:
    """Tell secrets from the words and numbers that AUTHOR, MONKEY and PASSES have."""
    return len(value) >= _SHORTEST_MAYBE and not re.fullmatch(r"[A-Za-z]+|[-+0-9.eE]+", value)


def _found(value: Any, *, secret: bool = False) -> Iterator[str]:
    if isinstance(value, Mapping):
        for name, member in value.items():
            if not (secret and name in _NO_SECRET):
                yield from _found(member, secret=secret or _SECRET.search(name) is not None)
    elif isinstance(value, list):
        for element in value:
            yield from _found(element, secret=secret)
    elif isinstance(value, str):
        if secret or "PRIVATE KEY-----" in value:
            yield value
        yield from _of_text(value)
    elif secret and isinstance(value, (int, float)) and not isinstance(value, bool):
        yield str(value)


def _of_text(text: str) -> Iterator[str]:
    """Yield what ``public`` takes out of a text: passwords, with and without their users, and parameters."""
    for match in _USERINFO.finditer(text):
        given = match[0][:-1]
        for part in (given, given.partition(":")[2]):
            yield from (part, unquote(part))
    for match in _PARAMETER.finditer(text):
        if _SECRET_VARIABLE.search(match[2]):
            value = match[0].partition("=")[2]
            yield from (value, unquote(value))
