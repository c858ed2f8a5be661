"""The request in a message: its dataclasses, and every check on what strangers wrote (protocol sections 1 and 4).

All faults of a message are told at once, each with the path of the member that has it, never with a secret.
"""

from __future__ import annotations

import hashlib
import json
import math
import posixpath
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from runner.errors import RequestError
from runner.message import shell_words, strict_json
from runner.message.fields import (
    SHOWN,
    Fields,
    count_of,
    is_text,
    moment_of,
    printable,
    version_of,
    word_of,
)
from runner.message.request_artifacts import Artifact, Record, StoresOfRequest, artifacts_of, record_of
from runner.message.request_packages import requirements_of
from runner.secrets.masking import Secrets
from runner.secrets.redaction import redacted, secrets_of
from runner.units import parse_size

__all__ = [
    "Artifact",
    "Record",
    "Request",
    "Resources",
    "from_document",
    "is_envelope",
    "load",
    "parse",
    "redacted",
]

# In bytes: a whole pip freeze and a hundred artifacts are some tens of kilobytes.
_LARGEST_MESSAGE = 16 * 1024 * 1024
# Each takes some sixty bytes of memory, however short it is.
_MOST_VALUES = 1_000_000
# In characters, together: splitting them is slow, and the system takes no more either.
_LONGEST_ARGS = 128 * 1024
# What object stores take as a key.
_LONGEST_KEY = 1024
# Of a file below the workspace, and of each part of its path, in bytes.
_LONGEST_PATH, _LONGEST_NAME = 2048, 255
# Of a project, an author and the like, in characters.
_LONGEST_LABEL = 1024
# In bytes: the system takes no longer variables (MAX_ARG_STRLEN), nor more of them together with the arguments.
_LONGEST_VARIABLE, _LARGEST_ENVIRONMENT = 128 * 1024 - 1, 1024 * 1024
# More would take long to look for in all that is shown. In characters, together.
_MOST_SECRETS, _MOST_OF_SECRETS = 2000, 256 * 1024
# So many faults are told one by one.
_TOLD = 20
# What the client's --verbose takes besides their names.
_LEVELS = {"10": "debug", "20": "info", "30": "warn", "40": "error", "50": "crit"}
# In seconds, where the message sets no limit.
_DEFAULT_LIMIT = 96 * 3600.0


@dataclass(frozen=True)
class Resources:
    """What the experiment asks for; memory and disk in bytes, ``gpus`` in slots."""

    cpus: int = 1
    gpus: int = 0
    gpu_count: int = 0
    gpu_mem: int = 0
    ram: int = 0
    hdd: int = 0


@dataclass(frozen=True)
class Request:
    """What a message asks for. Durations are in seconds, times in seconds since 1970; None: the message has none.

    ``args`` are words, their quoting done. ``pythonver`` is ``3``, ``3.11`` or ``3.11.4``; a JSON number is taken as
    it is written, and many writers make 3.1 of 3.10. ``document`` is the message as it came, secrets included.
    """

    key: str
    filename: str
    args: tuple[str, ...]
    pythonver: str
    pythonenv: tuple[str, ...]
    pip: tuple[str, ...]
    project: str | None
    project_version: str | None
    project_experiment: str | None
    author: str | None
    artifacts: Mapping[str, Artifact]
    resources: Resources
    max_duration: float | None
    lifetime: float | None
    time_added: float | None
    save_frequency: float | None
    env: Mapping[str, str] = field(repr=False)
    verbose: str | None
    record: Record | None
    document: Mapping[str, Any] = field(repr=False)

    @property
    def identity(self) -> str:
        """Tell submissions apart: the same for every delivery of one, another one when a key is used again."""
        parts = json.dumps([self.project, self.key, self.time_added])
        return hashlib.sha256(parts.encode()).hexdigest()[:32]

    @property
    def end_of_life(self) -> float:
        """When the experiment must not run any more; it may be infinite."""
        if self.lifetime is None or self.time_added is None:
            return math.inf
        return self.time_added + self.lifetime

    @property
    def longest(self) -> float:
        """How long one attempt may take, in seconds; infinite where only the end of its life ends it."""
        if self.max_duration is not None:
            return self.max_duration
        return _DEFAULT_LIMIT if math.isinf(self.end_of_life) else math.inf

    def expired(self, now: float) -> bool:
        """Tell whether the experiment must not run any more."""
        return now >= self.end_of_life


def parse(body: bytes, *, allow_env_secrets: bool = False) -> Request:
    """Read a message that is not encrypted. Raises RequestError with all its faults.

    ``allow_env_secrets``: AWS keys in ``config.env`` may stand in for credentials that the message does not have.
    """
    return from_document(load(body), allow_env_secrets=allow_env_secrets)


def load(body: bytes) -> object:
    """Return the JSON that a message is. Raises RequestError."""
    if len(body) > _LARGEST_MESSAGE:
        raise RequestError(f"the message has {len(body)} bytes, but {_LARGEST_MESSAGE} is the most that is read")
    try:
        return strict_json.loads(body.decode("utf-8-sig"), most=_MOST_VALUES)
    except UnicodeDecodeError as error:
        raise RequestError(f"the message is not JSON: it has bad UTF-8 at byte {error.start}") from None
    except ValueError as error:
        raise RequestError(f"the message {error}") from None


def is_envelope(document: object) -> bool:
    """Tell whether a message is sealed (protocol section 2)."""
    message = document.get("message") if isinstance(document, dict) else None
    return isinstance(message, dict) and "payload" in message


def from_document(document: object, *, allow_env_secrets: bool = False) -> Request:
    """Read a message that is parsed already, by ``load`` or from what ``Request.document`` was. Raises as ``parse``."""
    if is_envelope(document):
        raise RequestError("the message is an envelope, where a request is wanted: it has to be opened first")
    if not isinstance(document, dict) or not isinstance(document.get("experiment"), dict):
        raise RequestError("the message is JSON, but no request: it must be an object with an object named experiment")
    secrets = secrets_of(document)
    if len(secrets) > _MOST_SECRETS or sum(map(len, secrets)) > _MOST_OF_SECRETS:
        raise RequestError(
            f"the message has {len(secrets)} keys, tokens and passwords, but {_MOST_SECRETS} that have "
            f"{_MOST_OF_SECRETS} characters together are the most that can be kept from being shown"
        )
    faults: list[str] = []
    request = _request(Fields(document, "", faults), allow_env_secrets=allow_env_secrets)
    if faults:
        raise RequestError(map(Secrets.of(secrets).mask_text, _told(faults)))
    return request


def _told(faults: list[str]) -> list[str]:
    different = list(dict.fromkeys(faults))
    more = len(different) - _TOLD
    return different[:_TOLD] + ([f"and {more} more faults"] if more > 0 else [])


def _request(root: Fields, *, allow_env_secrets: bool) -> Request:
    experiment, config = root.child("experiment"), root.child("config")
    env = _env(config)
    stores = StoresOfRequest(config, env, allow_env_secrets=allow_env_secrets)
    key = _key(experiment)
    args = _args(experiment)
    return Request(
        key=key,
        filename=_filename(experiment, args),
        args=args,
        pythonver=experiment.parsed("pythonver", version_of, "3"),
        pythonenv=requirements_of(experiment, "pythonenv"),
        pip=requirements_of(config, "pip"),
        project=experiment.parsed("project", _label_of, None),
        project_version=experiment.parsed("project_version", _label_of, None),
        project_experiment=experiment.parsed("project_experiment", _label_of, None),
        author=experiment.parsed("author", _label_of, None),
        artifacts=artifacts_of(experiment, stores),
        resources=_resources(experiment),
        max_duration=experiment.duration("max_duration"),
        lifetime=config.duration("experimentLifetime"),
        time_added=experiment.parsed("time_added", moment_of, None) or None,
        save_frequency=config.duration("saveWorkspaceFrequency"),
        env=env,
        verbose=_verbose(config),
        record=record_of(config, key, stores),
        document=root.members,
    )


# The experiment


def _key(experiment: Fields) -> str:
    key = experiment.required("key")
    if len(key) > _LONGEST_KEY:
        experiment.fault("key", f"has {len(key)} characters, but {_LONGEST_KEY} is the most")
    return key


def _label_of(value: str | float) -> str:
    text = word_of(value)
    if len(text) > _LONGEST_LABEL:
        raise ValueError(f"has {len(text)} characters, but {_LONGEST_LABEL} is the most")
    return text


def _args(experiment: Fields) -> tuple[str, ...]:
    given = experiment.typed("args", list) or []
    words = [experiment.parse(f"args[{index}]", word, word_of, "") for index, word in enumerate(given)]
    line = " ".join(words)
    if len(line) > _LONGEST_ARGS:
        experiment.fault("args", f"have {len(line)} characters, but {_LONGEST_ARGS} is the most")
        return ()
    try:
        return tuple(shell_words.split(line))
    except ValueError as error:
        experiment.fault("args", f"{error}: args are words of a shell")
        return ()


def _filename(experiment: Fields, args: tuple[str, ...]) -> str:
    name = experiment.required("filename")
    if name == "-m":
        if not args or not all(part.isidentifier() for part in args[0].split(".")):
            experiment.fault("args", "must begin with the dotted name of a module, since filename is -m")
    elif name and (why := _not_inside(name)):
        experiment.fault("filename", f"is {SHOWN.repr(name)}, {why}")
    return name


def _not_inside(name: str) -> str:
    """Say why this is no path of a file in the workspace, "" when it is one."""
    if name.startswith("/") or posixpath.normpath(name).split("/")[0] in ("..", "."):
        return "but must name a file inside the workspace, relative to it"
    if name.startswith("-"):
        return "which would be an option: write ./ before it"
    if len(name.encode()) > _LONGEST_PATH or any(len(part.encode()) > _LONGEST_NAME for part in name.split("/")):
        return "which is longer than the name of a file can be"
    return "" if printable(name) else "which has control characters in it"


def _resources(experiment: Fields) -> Resources:
    given = experiment.child("resources_needed")
    return Resources(
        cpus=max(1, given.parsed("cpus", count_of, 1)),
        gpus=given.parsed("gpus", count_of, 0),
        gpu_count=given.parsed("gpuCount", count_of, 0),
        gpu_mem=given.parsed("gpuMem", parse_size, 0),
        ram=given.parsed("ram", parse_size, 0),
        hdd=given.parsed("hdd", parse_size, 0),
    )


def _verbose(config: Fields) -> str | None:
    """Return a level's name. Clients also take Python's numbers, and truth, for levels."""
    given = config.members.get("verbose")
    level = "info" if given is True or given == "True" else None if given is False else given
    text = config.parse("verbose", level, word_of, None)
    return _LEVELS.get(text, text) if text is not None else None


def _env(config: Fields) -> dict[str, str]:
    given, env = config.child("env"), {}
    for name, value in given.members.items():
        shown = name if re.fullmatch(r"\w{1,60}", name, re.ASCII) else SHOWN.repr(name)
        if not is_text(name) or name == "" or "=" in name:
            given.fault(shown, "is not the name of a variable")
        elif value is not None:
            env[name] = given.parse(shown, json.dumps(value) if isinstance(value, bool) else value, word_of, "")
    sizes = [len(f"{name}={value}".encode()) for name, value in env.items()]
    if sum(sizes) > _LARGEST_ENVIRONMENT or max(sizes, default=0) > _LONGEST_VARIABLE:
        config.fault("env", f"is too large: {_LARGEST_ENVIRONMENT} bytes, {_LONGEST_VARIABLE} each, are the most")
    return env
