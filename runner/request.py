"""The request in a message: its dataclasses, and every check on what strangers wrote (protocol sections 1 and 4).

All faults of a message are told at once, each with the path of the member that has it, never with a secret.
"""

from __future__ import annotations

import hashlib
import json
import math
import posixpath
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeVar

from runner import strict_json
from runner.archive import is_archive_name
from runner.errors import MachineError, RequestError
from runner.fields import (
    SHOWN,
    Fields,
    count_of,
    is_text,
    moment_of,
    printable,
    secret_of,
    sha256_of,
    text_of,
    version_of,
    word_of,
)
from runner.redaction import public, redacted
from runner.storage.base import AwsCredentials, BasicCredentials, BearerToken, Credentials, Location, locate
from runner.units import parse_size

__all__ = [
    "Artifact",
    "Record",
    "Request",
    "Resources",
    "Sealed",
    "from_document",
    "is_envelope",
    "load",
    "parse",
    "redacted",
]

T = TypeVar("T")

# In bytes: a whole pip freeze and a hundred artifacts are some tens of kilobytes.
_LARGEST_MESSAGE = 16 * 1024 * 1024
# In characters, together: splitting them is slow, and the system takes no more either.
_LONGEST_ARGS = 128 * 1024
# Real messages have a dozen; each costs a directory, and time of the loop that reads the message.
_MOST_ARTIFACTS = 1000
# What object stores take as a key.
_LONGEST_KEY = 1024
# So many faults are told one by one.
_TOLD = 20
# In seconds, where the message sets no limit.
_DEFAULT_LIMIT = 96 * 3600.0

_DEFAULT_REGION = "us-west-1"
_IMAGE_SCHEMES = ("shub", "docker", "dockerhub", "library")


class Sealed(MachineError):
    """The message is an envelope, which has to be opened before there is a request."""


@dataclass(frozen=True)
class Artifact:
    """One artifact and where it is.

    ``unpack`` is resolved: true only for archives. ``hash`` is the object's SHA-256 in hexadecimal, "" when the message
    has none. ``qualified`` is for people: its URL as given, without secrets. The location of a container image that is
    no object has the image's own scheme, and the rest of the reference as its key.
    """

    label: str
    location: Location
    mutable: bool
    unpack: bool
    hash: str
    credentials: Credentials | None
    qualified: str


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
class Record:
    """Where the client keeps its own record of the experiment (protocol section 5)."""

    location: Location
    credentials: Credentials | None


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
    def _end_of_life(self) -> float:
        if self.lifetime is None or self.time_added is None:
            return math.inf
        return self.time_added + self.lifetime

    def deadline(self, started: float) -> float:
        """Return when an attempt that began at ``started`` has to end."""
        attempt = math.inf if self.max_duration is None else started + self.max_duration
        end = min(attempt, self._end_of_life)
        return started + _DEFAULT_LIMIT if math.isinf(end) else end

    def expired(self, now: float) -> bool:
        """Tell whether the experiment must not run any more."""
        return now >= self._end_of_life


def parse(body: bytes, *, allow_env_secrets: bool = False) -> Request:
    """Read a message. Raises RequestError with all its faults, or Sealed.

    ``allow_env_secrets``: AWS keys in ``config.env`` may stand in for credentials that the message does not have.
    """
    return from_document(load(body), allow_env_secrets=allow_env_secrets)


def load(body: bytes) -> object:
    """Return the JSON that a message is. Raises RequestError."""
    if len(body) > _LARGEST_MESSAGE:
        raise RequestError(f"the message has {len(body)} bytes, but {_LARGEST_MESSAGE} is the most that is read")
    try:
        return strict_json.loads(body.decode("utf-8-sig"))
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
        raise Sealed("the message is encrypted, and this runner cannot open it")
    if not isinstance(document, dict) or not isinstance(document.get("experiment"), dict):
        raise RequestError("the message is JSON, but no request: it must be an object with an object named experiment")
    faults: list[str] = []
    request = _request(Fields(document, "", faults), allow_env_secrets=allow_env_secrets)
    if faults:
        raise RequestError(_told(faults))
    return request


def _told(faults: list[str]) -> list[str]:
    different = list(dict.fromkeys(faults))
    more = len(different) - _TOLD
    return different[:_TOLD] + ([f"and {more} more faults"] if more > 0 else [])


def _request(root: Fields, *, allow_env_secrets: bool) -> Request:
    experiment, config = root.child("experiment"), root.child("config")
    env = _env(config)
    stores = _Stores(config, env, allow_env_secrets=allow_env_secrets)
    key = _key(experiment)
    args = _args(experiment)
    return Request(
        key=key,
        filename=_filename(experiment, args),
        args=args,
        pythonver=experiment.parsed("pythonver", version_of, "3"),
        pythonenv=_requirements(experiment, "pythonenv"),
        pip=_requirements(config, "pip"),
        project=experiment.parsed("project", word_of, None),
        project_version=experiment.parsed("project_version", word_of, None),
        project_experiment=experiment.parsed("project_experiment", word_of, None),
        author=experiment.parsed("author", word_of, None),
        artifacts=_artifacts(experiment, stores),
        resources=_resources(experiment),
        max_duration=experiment.duration("max_duration"),
        lifetime=config.duration("experimentLifetime"),
        time_added=experiment.parsed("time_added", moment_of, None) or None,
        save_frequency=config.duration("saveWorkspaceFrequency"),
        env=env,
        verbose=config.parsed("verbose", word_of, None),
        record=_record(config, key, stores),
        document=root.members,
    )


# The experiment


def _key(experiment: Fields) -> str:
    key = experiment.required("key")
    if len(key) > _LONGEST_KEY:
        experiment.fault("key", f"has {len(key)} characters, but {_LONGEST_KEY} is the most")
    return key


def _args(experiment: Fields) -> tuple[str, ...]:
    given = experiment.typed("args", list) or []
    words = [experiment.parse(f"args[{index}]", word, word_of, "") for index, word in enumerate(given)]
    line = " ".join(words)
    if len(line) > _LONGEST_ARGS:
        experiment.fault("args", f"have {len(line)} characters, but {_LONGEST_ARGS} is the most")
        return ()
    try:
        return tuple(shlex.split(line))
    except ValueError:
        experiment.fault("args", "a quote is not closed, or nothing follows a backslash: args are words of a shell")
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


def _env(config: Fields) -> dict[str, str]:
    given, env = config.child("env"), {}
    for name, value in given.members.items():
        shown = name if re.fullmatch(r"\w{1,60}", name, re.ASCII) else SHOWN.repr(name)
        if not is_text(name) or name == "" or "=" in name:
            given.fault(shown, "is not the name of a variable")
        elif value is not None:
            env[name] = given.parse(shown, json.dumps(value) if isinstance(value, bool) else value, word_of, "")
    return env


# Requirements: lines of a file for pip, which must stay lines, and no options

_EDITABLE = re.compile(r"(-e|--editable)[ =] *git\+https://[^ ]+#egg=[^ ]+")


def _requirements(given: Fields, name: str) -> tuple[str, ...]:
    lines = []
    for index, value in enumerate(given.typed(name, list) or []):
        where = f"{name}[{index}]"
        line = given.parse(where, value, text_of, "").strip()
        if value is None or (isinstance(value, str) and not value.strip()):
            given.fault(where, "is empty")
        # pip freeze writes comments. They are left out: the first ones can choose the encoding that pip reads with.
        elif line and not line.startswith("#"):
            lines.append(line)
            if why := _not_installable(line):
                given.fault(where, why)
    return tuple(lines)


def _not_installable(line: str) -> str:
    """Say why this must not be in a file for pip, "" when it may.

    pip ends lines where str.splitlines does, joins those after a backslash, and replaces ``${NAME}`` by its own
    environment's variables: https://pip.pypa.io/en/stable/reference/requirements-file-format/
    """
    if not printable(line) or line.endswith("\\"):
        return "must be a single line without control characters"
    if "${" in line:
        return "must not use variables of the environment"
    if _EDITABLE.fullmatch(line):
        return ""
    if line.startswith("-") or " -" in line.partition(" #")[0]:
        return "must be a requirement without options of pip; editable ones must be -e git+https://...#egg=..."
    return ""


# Stores


def _credentials(given: Fields) -> Credentials | None:
    found = given.child("credentials")
    kinds = [kind for kind in _CREDENTIALS if found.has(kind)]
    if len(kinds) > 1:
        given.fault("credentials", f"has both {kinds[0]} and {kinds[1]}, but must have one kind only")
    elif kinds and found.typed(kinds[0], dict) is not None:
        return _CREDENTIALS[kinds[0]](found.child(kinds[0]))
    return None


def _aws(given: Fields) -> AwsCredentials:
    secret = "secret_access_key" if given.has("secret_access_key") else "secret_key"
    keys = [given.parsed(name, secret_of, "") for name in ("access_key", secret, "session_token", "region")]
    if not given.has("access_key") or not given.has(secret) or bool(keys[0]) != bool(keys[1]):
        given.fault("access_key", "it and secret_access_key must both be given; two empty ones mean anonymous access")
    return AwsCredentials(*keys)


def _plain(given: Fields) -> BasicCredentials:
    return BasicCredentials(given.required("user"), given.text("password"))


def _jwt(given: Fields) -> BearerToken:
    given.required("token")
    return BearerToken(given.parsed("token", secret_of, ""))


_CREDENTIALS: dict[str, Callable[[Fields], Credentials]] = {"aws": _aws, "plain": _plain, "jwt": _jwt}

# Which credentials of config.storage suit an artifact that has none of its own.
_SUITABLE: dict[str, type[Credentials]] = {"s3": AwsCredentials, "gs": BearerToken}


class _Stores:
    """What ``config`` says about stores in general: the credentials to fall back on, the region, and who speaks TLS."""

    def __init__(self, config: Fields, env: Mapping[str, str], *, allow_env_secrets: bool) -> None:
        self._storage = config.child("storage")
        self._env = config.child("env") if allow_env_secrets else Fields({}, "", config.faults)
        region = env.get("AWS_DEFAULT_REGION", "")
        self._region = region if re.fullmatch(r"[A-Za-z0-9-]+", region) else _DEFAULT_REGION
        endpoints = (self._storage.text("endpoint"), config.child("database").text("endpoint"))
        self._tls = {_host(endpoint) for endpoint in endpoints if endpoint.lower().startswith("https://")}

    @cached_property
    def _common(self) -> Credentials | None:
        names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
        own = _credentials(self._storage)
        if own is None and self._env.has(names[0]) and self._env.has(names[1]):
            return AwsCredentials(*(self._env.parsed(name, secret_of, "") for name in names))
        return own

    def credentials(self, given: Fields, scheme: str) -> Credentials | None:
        """Return an object's own credentials, or those that stand in for them."""
        own = _credentials(given)
        if own is None and scheme in _SUITABLE and isinstance(self._common, _SUITABLE[scheme]):
            return self._common
        return own

    def settle(self, location: Location, credentials: Credentials | None) -> Location:
        """Fill in what the URL of an s3 object does not say, when the host is not Amazon's."""
        if location.scheme != "s3" or location.region:
            return location
        own = credentials.region if isinstance(credentials, AwsCredentials) else ""
        return replace(location, tls=_host(location.host) in self._tls, region=own or self._region)


def _host(endpoint: str) -> str:
    """``https://user@Host:443/path`` → ``host``."""
    host = endpoint.rpartition("://")[2].partition("/")[0]
    return host.rpartition("@")[2].lower().removesuffix(":443")


def _artifacts(experiment: Fields, stores: _Stores) -> dict[str, Artifact]:
    given = experiment.child("artifacts")
    found: dict[str, Artifact] = {}
    if len(given.members) > _MOST_ARTIFACTS:
        experiment.fault("artifacts", f"are {len(given.members)}, but {_MOST_ARTIFACTS} is the most")
        return found
    for label in given.members:
        if not _is_label(label):
            given.fault(SHOWN.repr(label), "an artifact's label must be the name of a directory beside the others")
        elif given.typed(label, dict) is not None and (artifact := _artifact(given.child(label), label, stores)):
            found[label] = artifact
    if not given.has("workspace") and not given.has("_singularity"):
        experiment.fault("artifacts", "must have a workspace: there is no code to run")
    return found


def _is_label(label: str) -> bool:
    """Tell whether this can name a directory of the attempt's (protocol section 4)."""
    plain = label not in ("", ".", "..", "_runner") and "/" not in label and "\\" not in label
    return plain and printable(label) and is_text(label) and len(label.encode()) <= 255


def _artifact(given: Fields, label: str, stores: _Stores) -> Artifact | None:
    name = "url" if given.has("url") and not given.has("qualified") else "qualified"
    location = _location(given, name, label)
    if location is None:
        return None
    faults = len(given.faults)
    credentials = stores.credentials(given, location.scheme)
    if location.scheme == "s3" and not isinstance(credentials, AwsCredentials) and len(given.faults) == faults:
        given.fault(
            "credentials", "s3:// needs aws credentials, here or in config.storage; two empty keys are anonymous"
        )
    mutable = given.typed("mutable", bool) or False
    if mutable and location.scheme in ("http", "https"):
        given.fault("mutable", f"is true, but what {location.scheme}:// names can only be read")
    return Artifact(
        label=label,
        location=stores.settle(location, credentials),
        mutable=mutable,
        unpack=_unpack(given, label, location),
        hash=given.parsed("hash", sha256_of, ""),
        credentials=credentials,
        qualified=public(given.text(name)),
    )


def _location(given: Fields, name: str, label: str) -> Location | None:
    url = given.required(name)
    scheme, _, reference = url.partition("://")
    if label == "_singularity" and scheme in _IMAGE_SCHEMES and reference:
        return Location(scheme, "", "", reference)
    try:
        return locate(url, bucket=given.text("bucket"), key=given.text("key")) if url else None
    except ValueError as error:
        given.fault(name, str(error))
        return None


def _unpack(given: Fields, label: str, location: Location) -> bool:
    wanted = given.typed("unpack", bool)
    key = location.key.partition("?")[0] if location.scheme in ("http", "https") else location.key
    archive = is_archive_name(key)
    if wanted and not archive and label != "_singularity":
        given.fault("unpack", f"is true, but {SHOWN.repr(posixpath.basename(key))} is not an archive's name")
    return archive and wanted is not False


def _record(config: Fields, key: str, stores: _Stores) -> Record | None:
    database = config.child("database")
    kind, bucket, endpoint = (database.text(name) for name in ("type", "bucket", "endpoint"))
    if not bucket or not _is_path(key) or kind not in ("s3", "local"):
        return None
    if kind == "local":
        return _local_record(endpoint, bucket, key)
    try:
        location = locate(f"s3://{_host(endpoint) or 's3.amazonaws.com'}/", bucket=bucket, key=f"experiments/{key}")
    except ValueError as error:
        database.fault("endpoint", str(error))
        return None
    credentials = stores.credentials(database, "s3")
    return Record(stores.settle(location, credentials), credentials) if credentials else None


def _local_record(endpoint: str, bucket: str, key: str) -> Record | None:
    directory = endpoint.removeprefix("file://").rstrip("/")
    if not endpoint or not directory.startswith("/") or not _is_path(bucket):
        return None
    return Record(Location("file", "", f"{directory}/{bucket}", f"experiments/{key}"), None)


def _is_path(text: str) -> bool:
    """Tell whether this, as a part of a key, stays what it is and where it is."""
    return not {"", ".", ".."} & set(text.split("/"))
