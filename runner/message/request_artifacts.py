"""Where a request's artifacts and its client's record are, and with whose credentials (protocol section 1)."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from runner.message.archive_names import is_archive_name
from runner.message.fields import SHOWN, Fields, is_text, printable, secret_of, sha256_of
from runner.secrets.redaction import public
from runner.storage.base import AwsCredentials, BasicCredentials, BearerToken, Credentials, Location, locate
from runner.units import parse_duration

# Real messages have a dozen; each costs a directory, and time of the loop that reads the message.
_MOST_ARTIFACTS = 1000
_DEFAULT_REGION = "us-west-1"
_IMAGE_SCHEMES = ("shub", "docker", "dockerhub", "library")
# Becomes a word of a command: user/name:tag, host:5000/path/name@sha256:digest.
_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@/+-]*")


@dataclass(frozen=True)
class Artifact:
    """One artifact and where it is.

    ``unpack`` is resolved: true only for archives. ``save_frequency`` is how many seconds lie between its checkpoints,
    0 for none, None where it has no pace of its own. ``hash`` is the object's SHA-256 in hexadecimal, "" when the
    message has none. ``qualified`` is for people: its URL as given, without secrets. The location of a container
    image that is no object has the image's own scheme, and the rest of the reference as its key.
    """

    label: str
    location: Location
    mutable: bool
    unpack: bool
    hash: str
    credentials: Credentials | None
    qualified: str
    save_frequency: float | None = None


@dataclass(frozen=True)
class Record:
    """Where the client keeps its own record of the experiment (protocol section 5)."""

    location: Location
    credentials: Credentials | None


def _credentials(given: Fields) -> Credentials | None:
    if given.members.get("credentials") == "none":  # as the client's own reader has it
        return None
    found = given.child("credentials")
    kinds = [kind for kind in _CREDENTIALS if found.has(kind)]
    if len(kinds) > 1:
        given.fault("credentials", f"has both {kinds[0]} and {kinds[1]}, but must have one kind only")
    elif kinds and found.typed(kinds[0], dict) is not None:
        return _CREDENTIALS[kinds[0]](found.child(kinds[0]))
    return None


def _aws(given: Fields) -> AwsCredentials:
    secret = "secret_access_key" if given.has("secret_access_key") else "secret_key"
    region = "region" if given.has("region") else "region_name"
    keys = [given.parsed(name, secret_of, "") for name in ("access_key", secret, "session_token", region)]
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


class StoresOfRequest:
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


def artifacts_of(experiment: Fields, stores: StoresOfRequest) -> dict[str, Artifact]:
    """Read ``experiment.artifacts``."""
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


def _artifact(given: Fields, label: str, stores: StoresOfRequest) -> Artifact | None:
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
        save_frequency=_pace(given),
    )


def _pace(given: Fields) -> float | None:
    """Return an artifact's own pace. For whom it has none, writers in Go send the number 0; the text is a pace."""
    return given.parse("saveFrequency", given.members.get("saveFrequency") or None, parse_duration, None)


def _location(given: Fields, name: str, label: str) -> Location | None:
    url = given.required(name)
    scheme, _, reference = url.partition("://")
    if label == "_singularity" and scheme in _IMAGE_SCHEMES:
        if not _IMAGE.fullmatch(reference) or not _is_path(reference):
            given.fault(name, f"must name an image: {scheme}://[HOST/]NAME[:TAG], without spaces or options")
            return None
        return Location(scheme, "", "", reference)
    if not printable(url + given.text("bucket") + given.text("key")):
        given.fault(name, "has control characters in it, or bucket and key have")
        return None
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


def record_of(config: Fields, key: str, stores: StoresOfRequest) -> Record | None:
    """Read where ``config.database`` says that the record is; None when that is nowhere that we know."""
    database = config.child("database")
    kind, bucket, endpoint = (database.text(name) for name in ("type", "bucket", "endpoint"))
    kind = kind.lower()
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
