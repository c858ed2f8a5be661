"""Objects in S3, or in whatever speaks its protocol."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial

from requests import Response

from runner.errors import Unavailable
from runner.storage import ranges
from runner.storage.base import AwsCredentials, Denied, Location, NotFound, Reader, Stored, StoreOptions
from runner.storage.ranges import Changed, Ranges
from runner.storage.s3_check import Checked, Doubts, part_size
from runner.storage.s3_upload import Upload, bare
from runner.storage.s3_wire import BeyondEnd, Bucket, Call
from runner.storage.transport import Body, is_part, range_of
from runner.storage.uploads import completed

_OWN_KEYS = ("x-amz-server-side-encryption-aws-kms-key-id", "x-amz-server-side-encryption-customer-algorithm")


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
        self._patience, self._sleep = options.patience, sleep
        self._tls, self._doubts = location.tls, Doubts()

    @contextmanager
    def open(self, key: str) -> Iterator[Stored]:
        """See Store. The stream goes on where it breaks, for as long as patience lasts."""
        with closing(self._first(key)) as response:
            body, etag, found = Body(response, key), response.headers.get("etag", ""), range_of(response)
            if found is None:
                yield self._stored(key, body, response, body.size)
                return
            fetch = partial(self._fetch, key, etag)
            with closing(Ranges(fetch, body, found.size, patience=self._patience, pause=self._sleep)) as stream:
                yield self._stored(key, stream, response, found.size)

    def _stored(self, key: str, stream: Reader, response: Response, size: int | None) -> Stored:
        etag = bare(response.headers.get("etag"))
        # TLS lets nothing pass that was damaged, and the ETags of objects with keys of their own are no digests.
        checkable = not self._tls and not any(name in response.headers for name in _OWN_KEYS)
        part = part_size(etag, size) if size and checkable else 0
        if part and size:
            stream = Checked(stream, key, etag, size=size, part=part, doubts=self._doubts)
        return Stored(stream, etag, size)

    def _first(self, key: str) -> Response:
        """Ask for the beginning of an object: as much as goes over one connection."""

        def first() -> Response:
            try:
                response = self._bucket.fetch(key, (0, ranges.PART))
            except BeyondEnd:  # of an object without a single byte
                return self._bucket.fetch(key)
            found = range_of(response)
            if response.status_code != 206 or (found and found.start == 0 and response.headers.get("etag")):
                return response
            response.close()
            return self._bucket.fetch(key)

        return self._bucket.patiently(first)

    @contextmanager
    def _fetch(self, key: str, etag: str, start: int, end: int) -> Iterator[Body]:
        with closing(self._bucket.fetch(key, (start, end), etag=etag)) as response:
            if response.headers.get("etag", etag) != etag:  # not all stores look at conditions
                raise Changed(f"{key!r} was replaced while it was read")
            if not is_part(response, start, end):
                raise Unavailable(f"the store answered with other bytes of {key!r} than were asked for")
            yield Body(response, key)

    def etag(self, key: str) -> str | None:
        """See Store. None also when there is no such bucket."""
        try:
            return bare(self._bucket.ask(Call("HEAD", key)).headers.get("etag"))
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
    def create(self, key: str) -> Iterator[Upload]:
        """See Store. A few parts are in memory: six times PART bytes, and more only beyond 4000 parts."""
        with completed(Upload(self._bucket, key, pause=self._sleep)) as upload:
            yield upload
