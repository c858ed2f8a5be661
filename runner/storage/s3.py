"""Objects in S3, or in whatever speaks its protocol."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from xml.sax.saxutils import escape

from runner.errors import RunnerError, Unavailable
from runner.retry import Patience
from runner.storage.base import AwsCredentials, Denied, Location, NotFound, Stored, StoreOptions
from runner.storage.s3_wire import Bucket, Call
from runner.storage.sigv4 import encode
from runner.storage.transport import Body

# Bytes of the first parts of an upload, and the largest object that goes up in one piece. At least 5 MiB by S3's rules.
PART = 8 * 1024 * 1024
# S3 takes 10,000 parts: with sizes that double every so many of them, that is 496 GiB.
PARTS_OF_A_SIZE = 2000

# Cleaning up is a courtesy that must not keep a dying attempt.
_ABORT_PATIENCE = Patience(total=10)


class S3Store:
    """A bucket of an S3 endpoint, path-style. See Store."""

    def __init__(
        self,
        location: Location,
        credentials: AwsCredentials,
        options: StoreOptions,
        *,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._bucket = Bucket(location, credentials, options, sleep=sleep)

    @contextmanager
    def open(self, key: str) -> Iterator[Stored]:
        """See Store. Only the opening is tried again: a stream that breaks has to be opened anew."""
        with closing(self._bucket.fetch(key)) as response:
            body = Body(response, key)
            yield Stored(body, _etag(response.headers.get("etag")), body.size)

    def etag(self, key: str) -> str | None:
        """See Store. None also when there is no such bucket."""
        try:
            return _etag(self._bucket.ask(Call("HEAD", key)).headers.get("etag"))
        except NotFound:
            return None
        except Denied:
            return self._etag_by_get(key)

    def _etag_by_get(self, key: str) -> str | None:
        """The answer to a HEAD has no body that could say why it is a refusal; that to a GET has."""
        try:
            with self.open(key) as stored:
                return stored.etag
        except NotFound:
            return None

    @contextmanager
    def create(self, key: str) -> Iterator[_Upload]:
        """See Store. At most one part is in memory: PART bytes, and more only beyond PARTS_OF_A_SIZE parts."""
        upload = _Upload(self._bucket, key)
        try:
            yield upload
            upload.finish()
        except BaseException:
            upload.abort()
            raise


class _Upload:
    """An object on its way up: one part of it is gathered in memory, the earlier ones are with the store."""

    def __init__(self, bucket: Bucket, key: str) -> None:
        self._bucket, self._key = bucket, key
        self._part, self._filled = memoryview(bytearray(PART)), 0
        self._query = ""
        self._etags: list[str] = []
        self._digests = hashlib.md5(usedforsecurity=False)

    def write(self, data: bytes, /) -> int:
        rest = memoryview(data)
        while rest:
            if self._filled == len(self._part):
                self._send_part()
            taken = min(len(rest), len(self._part) - self._filled)
            self._part[self._filled : self._filled + taken] = rest[:taken]
            self._filled += taken
            rest = rest[taken:]
        return len(data)

    def finish(self) -> None:
        """Make the object visible."""
        if not self._query:
            self._bucket.ask(Call("PUT", self._key, body=self._part[: self._filled]))
            return
        self._send_part()
        self._complete()

    def abort(self) -> None:
        """Remove the parts that are there, if any, and if it can be done."""
        if self._query:
            with suppress(RunnerError):
                self._bucket.ask(Call("DELETE", self._key, self._query), patience=_ABORT_PATIENCE)

    def _begin(self) -> None:
        name = self._bucket.ask(Call("POST", self._key, "?uploads=")).fields.get("UploadId")
        if not name:
            raise Unavailable(f"the store gave the upload of {self._key!r} no name")
        self._query = f"?uploadId={encode(name)}"

    def _send_part(self) -> None:
        if not self._query:
            self._begin()
        number = len(self._etags) + 1
        part = Call("PUT", self._key, f"?partNumber={number}&{self._query[1:]}", self._part[: self._filled])
        self._etags.append(self._bucket.ask(part).headers.get("etag", ""))
        self._digests.update(part.md5)
        self._filled = 0
        if part_size(number + 1) != len(self._part):
            self._part = memoryview(bytearray(part_size(number + 1)))

    def _complete(self) -> None:
        parts = "".join(
            f"<Part><PartNumber>{number}</PartNumber><ETag>{escape(etag)}</ETag></Part>"
            for number, etag in enumerate(self._etags, start=1)
        )
        document = f"<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>".encode()
        try:
            done = (
                "CompleteMultipartUploadResult"
                in self._bucket.ask(Call("POST", self._key, self._query, document)).fields
            )
        except NotFound:  # there is no such upload: any more, perhaps
            done = False
        if not done and not self._completed():
            raise Unavailable(f"the upload of {self._key!r} was not completed")

    def _completed(self) -> bool:
        """Tell whether a try succeeded whose answer was lost: then the object has the ETag that our parts make."""
        try:
            found = self._bucket.ask(Call("HEAD", self._key)).headers.get("etag")
        except NotFound:
            return False
        return _etag(found) == f"{self._digests.hexdigest()}-{len(self._etags)}"


def part_size(number: int) -> int:
    """Return the size in bytes of the part with this number, counted from 1."""
    return PART << (number - 1) // PARTS_OF_A_SIZE


def _etag(header: str | None) -> str:
    return (header or "").removeprefix("W/").strip('"')
