"""What a store is, and what the rest of the house needs to know to reach an object in one."""

from __future__ import annotations

import re
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from ipaddress import IPv6Address
from typing import Protocol
from urllib.parse import quote, unquote

from runner.errors import ExperimentError, Unavailable
from runner.retry import Patience

# The unit in which everything streams, in bytes: large enough that calls cost little, small enough to forget about.
CHUNK = 256 * 1024

_PATIENCE = Patience(total=300)


class Anew(Unavailable):
    """A transfer is broken: only another one, from its beginning, can succeed."""


class NotFound(ExperimentError):
    """There is no such object or bucket."""


class Denied(ExperimentError):
    """The store refuses these credentials, or the operator does not allow this place."""


@dataclass(frozen=True)
class AwsCredentials:
    """An access key pair; both empty means anonymous access. ``region`` is "" unless the message names one."""

    access_key: str
    secret_key: str = field(repr=False)
    session_token: str = field(default="", repr=False)
    region: str = ""

    @property
    def anonymous(self) -> bool:
        """True when requests are to go out unsigned."""
        return not self.access_key and not self.secret_key


@dataclass(frozen=True)
class BasicCredentials:
    """HTTP basic authentication."""

    user: str
    password: str = field(repr=False)


@dataclass(frozen=True)
class BearerToken:
    """An OAuth bearer token (GCS, HTTP)."""

    token: str = field(repr=False)


Credentials = AwsCredentials | BasicCredentials | BearerToken


@dataclass(frozen=True)
class Location:
    """Where one object is, as far as the message says it.

    ``scheme`` is ``s3``, ``gs``, ``file``, ``http`` or ``https``. ``host`` is ``HOST[:PORT]`` ("" for file and gs).
    ``bucket`` is the bucket's name; for ``file`` it is the absolute directory that ``key`` is relative to; for http(s)
    it is "" and ``key`` is the path and query. ``tls`` and ``region`` are resolved for s3 (protocol section 1) and
    mean nothing elsewhere.
    """

    scheme: str
    host: str
    bucket: str
    key: str
    tls: bool = False
    region: str = ""

    def sibling(self, key: str) -> Location:
        """Another object of the same bucket."""
        return replace(self, key=key)

    def __str__(self) -> str:
        # Neither who wrote the message nor who redirects is to begin lines of a log.
        return _CONTROL.sub(lambda found: quote(found[0]), self._written())

    def _written(self) -> str:
        if self.scheme == "file":
            return f"file://{self.bucket.rstrip('/')}/{self.key}"
        if self.scheme in ("http", "https"):
            path, query, _ = self.key.partition("?")
            return f"{self.scheme}://{self.host}/{path}{query and '?…'}"  # a query may be a signature
        place = "/".join(part for part in (self.host, self.bucket) if part)
        return f"{self.scheme}://{place}/{self.key}"


_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_HOST = re.compile(
    r"(?:\[(?P<ipv6>[0-9A-Fa-f:.]+)\]|[A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63})*\.?)(?::(?P<port>[0-9]{1,5}))?"
)
_LAST_PORT = 65535
# https://docs.aws.amazon.com/general/latest/gr/s3.html: the old (s3-REGION) and the new (s3.REGION) names.
_AWS_HOST = re.compile(
    r"s3(?:\.dualstack)?(?:[.-](?P<region>[a-z0-9-]+))?\.amazonaws\.com(?:\.cn)?(?::443)?", re.IGNORECASE
)


def locate(qualified: str, *, bucket: str = "", key: str = "") -> Location:
    """Return where the object is that an artifact's ``qualified`` URL, ``bucket`` and ``key`` name: protocol section 1.

    ``bucket`` and ``key`` win over the path of the URL, but for ``file``, whose path always comes from the URL. Only
    ``file`` URLs are percent-decoded: clients write the keys of the others as they are. For an ``s3`` host that is not
    Amazon's, ``tls`` and ``region`` are left to the caller. Raises ValueError, whose text never repeats the URL (it may
    hold a password), when no object is named.
    """
    scheme, separator, rest = qualified.partition("://")
    scheme = scheme.lower()
    if not separator or scheme not in _LOCATORS:
        raise ValueError(f"an artifact's URL must start with one of {', '.join(f'{name}://' for name in _LOCATORS)}")
    location = _LOCATORS[scheme](scheme, rest, bucket, key)
    if not _utf8(location.bucket + location.key) or "\0" in location.bucket + location.key:
        raise ValueError(f"the bucket or key of the {scheme}:// artifact is not valid text")
    return location


def _utf8(text: str) -> bool:
    """JSON can carry half of a surrogate pair, which no store can take."""
    return text == text.encode(errors="replace").decode()


def _locate_s3(scheme: str, rest: str, bucket: str, key: str) -> Location:
    host, _, path = rest.partition("/")
    path = path.lstrip("/")  # no bucket's name is empty, and there are writers that put two slashes before it
    if bucket.lower() == host.lower() and path not in ("", key):
        bucket = ""  # StudioML's client takes a host for the bucket where it has no port, and no .com at its end
    bucket, key = _bucket_and_key(scheme, path, bucket, key)
    aws = _AWS_HOST.fullmatch(host)
    region = (aws["region"] or "us-east-1").lower() if aws else ""
    return Location(scheme, _checked_host(scheme, host), bucket, key, tls=aws is not None, region=region)


def _locate_gs(scheme: str, rest: str, bucket: str, key: str) -> Location:
    return Location(scheme, "", *_bucket_and_key(scheme, rest, bucket, key))


def _locate_file(scheme: str, rest: str, _bucket: str, key: str) -> Location:
    host, _, path = rest.partition("/")
    if host not in ("", "localhost"):
        path = f"{host}/{path}"  # StudioML's client forgets the third slash: file://home/me/store/KEY names no host
    path = unquote(f"/{path}")
    directory = path.removesuffix(f"/{key}") if key else path
    if directory == path:
        directory, _, key = path.rpartition("/")
    if not key:
        raise ValueError("the file:// URL of an artifact names no file: file:///DIRECTORY/NAME is needed")
    return Location(scheme, "", directory or "/", key)


def _locate_http(scheme: str, rest: str, _bucket: str, _key: str) -> Location:
    host, _, path = rest.partition("#")[0].partition("/")
    return Location(scheme, _checked_host(scheme, host), "", path)


_LOCATORS = {
    "s3": _locate_s3,
    "gs": _locate_gs,
    "file": _locate_file,
    "http": _locate_http,
    "https": _locate_http,
}


def _bucket_and_key(scheme: str, path: str, bucket: str, key: str) -> tuple[str, str]:
    first, _, rest = path.partition("/")
    bucket, key = bucket or first, key or rest
    if not bucket or not key:
        raise ValueError(f"the {scheme}:// artifact names no {'key' if bucket else 'bucket'}")
    if "/" in bucket or bucket in (".", ".."):
        raise ValueError(f"the {scheme}:// artifact names an impossible bucket")
    return bucket, key


def _checked_host(scheme: str, host: str) -> str:
    found = _HOST.fullmatch(host)
    if not found or int(found["port"] or 0) > _LAST_PORT or (found["ipv6"] and not _is_ipv6(found["ipv6"])):
        raise ValueError(f"the {scheme}:// artifact must name a plain HOST or HOST:PORT, with no user or password")
    return host.lower()


def _is_ipv6(address: str) -> bool:
    try:
        return IPv6Address(address) is not None
    except ValueError:
        return False


@dataclass(frozen=True)
class StoreOptions:
    """What the operator says about all stores.

    ``s3_ca``, ``s3_cert`` and ``s3_key`` are paths of PEM files, "" for none: the authorities that S3 endpoints are
    verified with instead of the well-known ones, and this machine's own certificate and its key. For ``gs://``
    objects without a token of their own there is the key file of a service account, ``google_credentials``, or else
    the identity that ``google_metadata`` servers give this machine; ``google_endpoint`` is "" for the public one.
    ``file_roots`` are the directories that ``file://`` artifacts may lie in. ``link_local``: addresses at which
    machines find their own credentials may be read, too.
    """

    s3_ca: str = ""
    s3_cert: str = ""
    s3_key: str = ""
    google_credentials: str = ""
    google_metadata: bool = False
    google_endpoint: str = ""
    file_roots: tuple[str, ...] = ()
    link_local: bool = False
    patience: Patience = _PATIENCE


class Reader(Protocol):
    """An object being read."""

    def read(self, size: int = -1, /) -> bytes:
        """Return at most ``size`` bytes, b"" at the end. Raises Unavailable when the stream breaks or ends early."""


@dataclass(frozen=True)
class Stored:
    """An open object.

    ``etag`` names this very content; where the store has no such name it is "", and what is read must not be used for
    another reader. ``size`` is in bytes, or None when the store does not say.
    """

    stream: Reader
    etag: str
    size: int | None


class Writer(Protocol):
    """An object being written."""

    def write(self, data: bytes, /) -> int:
        """Take all of ``data``. Raises Denied, NotFound (the bucket) or Unavailable."""


class Store(Protocol):
    """One bucket of one store, under one set of credentials.

    Every call blocks, and tries again by itself, with growing delays, for as long as the store's patience allows;
    then it raises Unavailable. Wrong credentials or a missing bucket raise Denied and NotFound at once.
    """

    def open(self, key: str) -> AbstractContextManager[Stored]:
        """Read one object as a stream. Raises NotFound when it is not there."""

    def etag(self, key: str) -> str | None:
        """Return what ``Stored.etag`` would be, or None when the object is not there."""

    def create(self, key: str) -> AbstractContextManager[Writer]:
        """Write one object of unknown length.

        It appears under its key, whole, when the context ends without an exception, and not at all otherwise:
        nothing partial is ever visible, and nothing is left behind.
        """
