"""What may be shown of a message: everything but its secrets."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

# Rather one harmless member too many than one secret too few.
_SECRET = re.compile(
    "secret|passw|passphrase|credential|token(?!iz)|private_?key|access_?key|api_?key|authorization|cookie|hook",
    re.IGNORECASE,
)
_SECRET_VARIABLE = re.compile(f"{_SECRET.pattern}|key|auth|pass|sig", re.IGNORECASE)

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
