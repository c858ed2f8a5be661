"""Requests to one S3 bucket, and what its answers mean.

The protocol: https://docs.aws.amazon.com/AmazonS3/latest/API/Welcome.html, as MinIO, Ceph and others speak it too.
"""

from __future__ import annotations

import base64
import hashlib
import re
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from functools import cached_property
from typing import TypeVar
from xml.etree import ElementTree

from requests import Response

from runner.errors import MachineError, RunnerError, Unavailable
from runner.retry import Patience, call
from runner.storage.base import AwsCredentials, Denied, Location, NotFound, StoreOptions
from runner.storage.ranges import Changed
from runner.storage.sigv4 import Signer, encode
from runner.storage.transport import Transport, Trust, passing

T = TypeVar("T")

ANONYMOUS = AwsCredentials("", "")

_TRANSIENT_CODES = {
    "BadDigest",  # the body was damaged on its way
    "IncompleteBody",
    "InternalError",
    "OperationAborted",
    "RequestTimeout",
    "ServiceUnavailable",
    "SlowDown",
    "XAmzContentSHA256Mismatch",
}
_REGION = re.compile(r"[a-z0-9-]{1,40}")
_AWS_HOST = re.compile(r"^s3[.-].*?(amazonaws\.com(?:\.cn)?(?::443)?)$")


class AccessDenied(Denied):
    """The key pair is good, but not for this."""


class BeyondEnd(RunnerError):
    """The bytes that are asked for begin after the object's last one."""


_MEANINGS: dict[str, tuple[type[RunnerError], str]] = {
    "NoSuchKey": (NotFound, "the object {object} does not exist"),
    "NoSuchBucket": (NotFound, "the bucket {bucket!r} does not exist at {endpoint}"),
    "InvalidRange": (BeyondEnd, "{object} has fewer bytes than are asked for"),
    "PreconditionFailed": (Changed, "{object} was replaced while it was read"),
    "NoSuchUpload": (NotFound, "the upload of {object} was aborted by somebody else"),
    "AccessDenied": (AccessDenied, "{endpoint} does not allow {who} to {verb} {object}"),
    "InvalidAccessKeyId": (
        Denied,
        "{endpoint} does not know {who}, which is to {verb} {object}: check the credentials",
    ),
    "SignatureDoesNotMatch": (
        Denied,
        "{endpoint} finds that the secret key does not belong to {who}, which is to {verb} {object}: "
        "check the credentials",
    ),
    "RequestTimeTooSkewed": (MachineError, "the clocks of {endpoint} and this machine differ too much: set the clock"),
}
# What a status means without a code: answers to a HEAD have none.
_UNSAID = {401: "AccessDenied", 403: "AccessDenied", 404: "NoSuchKey", 412: "PreconditionFailed", 416: "InvalidRange"}
_OTHERWISE = (Denied, "{endpoint} refuses {who} to {verb} {object}: {answer}")


@dataclass(frozen=True)
class Call:
    """One request about one object, before it is addressed and signed. ``query`` is encoded already."""

    method: str
    key: str
    query: str = ""
    body: bytes | memoryview = b""
    headers: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def sha256(self) -> str:
        """The body's hash, in hexadecimal."""
        return hashlib.sha256(self.body).hexdigest()

    @cached_property
    def md5(self) -> bytes:
        """The body's digest, which guards it on its way and makes up its ETag."""
        return hashlib.md5(self.body, usedforsecurity=False).digest()

    @property
    def verb(self) -> str:
        """What a person would call it."""
        return "read" if self.method in ("GET", "HEAD") else "write"


class Fields(dict[str, list[str]]):
    """The texts of XML elements by their local names."""

    def first(self, name: str) -> str:
        """Return the text of the first element of that name, "" when there is none."""
        return self[name][0] if name in self else ""


class _Target(Fields):
    """A target for the XML parser. Entities need a DOCTYPE, which no store sends: refused before it is read."""

    _text = ""

    def start(self, _tag: str, _attributes: Mapping[str, str]) -> None:
        self._text = ""

    def data(self, text: str) -> None:
        self._text += text

    def end(self, tag: str) -> None:
        self.setdefault(tag.rpartition("}")[2], []).append(self._text)

    def doctype(self, *_: object) -> None:
        raise ValueError("a store's answer has a DOCTYPE")

    def close(self) -> None:
        pass


def parse(text: bytes) -> Fields:
    """Return the elements of an XML document: as far as it is good, which it need not be."""
    fields = _Target()
    parser = ElementTree.XMLParser(target=fields)  # noqa: S314  # see _Target
    try:
        parser.feed(text)
        parser.close()
    except (ElementTree.ParseError, ValueError, LookupError):
        pass
    return fields


@dataclass(frozen=True)
class Answer:
    """A good answer that is no object: its headers and its XML elements."""

    headers: Mapping[str, str]
    fields: Fields


class Bucket:
    """One bucket, as one key pair sees it, over connections that are kept.

    Every request is tried again, as long as patience lasts, while the endpoint is Unavailable.
    """

    def __init__(
        self,
        location: Location,
        credentials: AwsCredentials,
        options: StoreOptions,
        *,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._location, self._credentials, self._patience, self._sleep = location, credentials, options.patience, sleep
        self._moved = False
        self._public: set[str] = set()
        hint = "its authority can be named by --s3-ca, this machine by --s3-cert and --s3-key"
        trust = Trust(options.s3_ca, options.s3_cert, options.s3_key, hint, options.link_local)
        self._transport = Transport(self._endpoint, trust)
        sent = credentials.access_key + credentials.session_token + location.region
        if not (sent.isascii() and sent.isprintable()):
            raise Denied(f"the access key, session token or region for {self._endpoint} has impossible characters")

    def ask(
        self, request: Call, *, patience: Patience | None = None, sleep: Callable[[float], None] | None = None
    ) -> Answer:
        """Send a request whose answer is short. Raises what the answer means if it is not a good one."""
        return call(lambda: self._ask(request), patience or self._patience, sleep=sleep or self._sleep)

    def patiently(self, action: Callable[[], T]) -> T:
        """Return what ``action`` returns, calling it again for as long as it raises Unavailable and patience lasts."""
        return call(action, self._patience, sleep=self._sleep)

    def fetch(self, key: str, bounds: tuple[int, int] | None = None, *, etag: str = "") -> Response:
        """Return an object's answer with its body unread; the caller closes it. It is one try, of one version if asked.

        ``bounds`` are the first byte wanted and the one after the last; ``etag`` is as the store wrote it. Where the
        key pair may not read the object, everybody may perhaps: it is tried once more anonymously. Raises Changed
        when the object is another one by now, and BeyondEnd when it is shorter.
        """
        wanted = {"range": f"bytes={bounds[0]}-{bounds[1] - 1}"} if bounds else {}
        request = Call("GET", key, headers=wanted | ({"if-match": etag} if etag else {}))
        try:
            return self._exchange(request, ANONYMOUS if key in self._public else self._credentials)
        except AccessDenied:
            if self._credentials.anonymous:
                raise
            try:
                response = self._exchange(request, ANONYMOUS)
            except (Denied, NotFound):
                pass
            else:
                self._public.add(key)
                return response
            raise

    @property
    def _endpoint(self) -> str:
        return f"{'https' if self._location.tls else 'http'}://{self._location.host}"

    def _ask(self, request: Call) -> Answer:
        with closing(self._exchange(request, self._credentials)) as response:
            fields = parse(self._transport.text(response))
        if "Error" in fields:  # S3 may have said 200 before it knew
            raise self._meaning(response.status_code, fields, request, self._credentials)
        return Answer(response.headers, fields)

    def _exchange(self, request: Call, credentials: AwsCredentials) -> Response:
        """Send a request once, or twice where the bucket turns out to be in another region."""
        while True:
            response = self._send(request, credentials)
            if response.status_code < 300:
                return response
            with closing(response):
                fields = parse(self._transport.text(response))
            if not self._move(response, fields):
                raise self._meaning(response.status_code, fields, request, credentials)

    def _move(self, response: Response, fields: Fields) -> bool:
        """Go where the answer says that the bucket is, once; False if it says nothing of the kind."""
        region = response.headers.get("x-amz-bucket-region") or fields.first("Region")
        told = response.status_code in (301, 307, 400) and _REGION.fullmatch(region) is not None
        if self._moved or not told or region == self._location.region:
            return False
        host = _AWS_HOST.sub(rf"s3.{region}.\1", self._location.host)
        self._location, self._moved = replace(self._location, region=region, host=host), True
        return True

    def _send(self, request: Call, credentials: AwsCredentials) -> Response:
        """Sign and send: the URL that is signed must be the one that is sent, '..' and all."""
        place = self._location
        url = f"{self._endpoint}/{encode(place.bucket)}/{encode(request.key, safe='/')}{request.query}"
        headers = dict(request.headers)
        if request.body and credentials.anonymous:  # a signature covers the body's SHA-256
            headers["content-md5"] = base64.b64encode(request.md5).decode()
        if not credentials.anonymous:
            signer = Signer(credentials, place.region, "s3")
            now = datetime.now(timezone.utc)
            headers = signer.sign(request.method, url, headers=headers, payload_hash=request.sha256, now=now)
        body = request.body if request.method in ("PUT", "POST") else None
        return self._transport.send(request.method, url, headers, body)

    def _meaning(self, status: int, fields: Fields, request: Call, credentials: AwsCredentials) -> RunnerError:
        """Return the error that an answer is, in words that hold no secret and little of what the endpoint says."""
        code = re.sub(r"[^A-Za-z0-9]", "", fields.first("Code"))[:60]
        answer = f"{status} {code}".strip()
        if _passing(status, code):
            return Unavailable(f"{self._endpoint} is out of order or overloaded: it answered {answer}")
        error, sentence = _MEANINGS.get(code or _UNSAID.get(status, "")) or _OTHERWISE
        return error(
            sentence.format(
                endpoint=self._endpoint,
                bucket=self._location.bucket,
                object=self._location.sibling(request.key),
                who=_name(credentials),
                verb=request.verb,
                answer=answer,
            )
        )


def _passing(status: int, code: str) -> bool:
    """Tell whether the same request may succeed later. A 200 that is an error was none that the endpoint foresaw."""
    return code in _TRANSIENT_CODES or passing(status) or (status < 300 and not code)


def _name(credentials: AwsCredentials) -> str:
    return "anonymous access" if credentials.anonymous else f"access key {credentials.access_key[:4]}…"
