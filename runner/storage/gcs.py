"""Objects in Google Cloud Storage."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial

from requests import Response

from runner import retry
from runner.errors import Unavailable
from runner.storage import ranges
from runner.storage.base import BearerToken, Location, NotFound, Stored, StoreOptions
from runner.storage.gcs_check import checked
from runner.storage.gcs_upload import Upload
from runner.storage.gcs_wire import BeyondEnd, Bucket, Call
from runner.storage.ranges import Ranges
from runner.storage.transport import Body, is_part, range_of
from runner.storage.uploads import completed


class GcsStore:
    """A bucket. See Store."""

    def __init__(
        self,
        location: Location,
        credentials: BearerToken | None,
        options: StoreOptions,
        *,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._bucket = Bucket(location, credentials, options, sleep=sleep)
        self._patience, self._sleep = options.patience, sleep

    @contextmanager
    def open(self, key: str) -> Iterator[Stored]:
        """See Store. The stream goes on where it breaks, for as long as patience lasts."""
        with closing(self._first(key)) as response:
            body, headers, found = Body(response, key), response.headers, range_of(response)
            generation = headers["x-goog-generation"]
            if found is None:
                yield Stored(checked(body, headers, body.size, key), generation, body.size)
                return
            fetch = partial(self._fetch, key, generation)
            with closing(Ranges(fetch, body, found.size, patience=self._patience, pause=self._sleep)) as stream:
                yield Stored(checked(stream, headers, found.size, key), generation, found.size)

    def _first(self, key: str) -> Response:
        """Ask for the beginning of an object: as much as goes over one connection."""

        def first() -> Response:
            try:
                response = self._bucket.fetch(key, (0, ranges.PART))
            except BeyondEnd:  # of an object without a single byte
                response = self._bucket.fetch(key)
            found = range_of(response)
            if response.status_code == 206 and (found is None or found.start):  # it does not say what it has
                response.close()
                response = self._bucket.fetch(key)
            if "x-goog-generation" in response.headers:
                return response
            response.close()
            raise Unavailable(f"the store does not say which version of {key!r} its answer is")

        return retry.call(first, self._patience, sleep=self._sleep)

    @contextmanager
    def _fetch(self, key: str, generation: str, start: int, end: int) -> Iterator[Body]:
        with closing(self._bucket.fetch(key, (start, end), generation=generation)) as response:
            if not is_part(response, start, end):
                raise Unavailable(f"the store answered with other bytes of {key!r} than were asked for")
            yield Body(response, key)

    def etag(self, key: str) -> str | None:
        """See Store: the generation. None also when there is no such bucket."""
        try:
            return str(self._bucket.ask(Call("GET", key, "object", "fields=generation")).members["generation"])
        except NotFound:
            return None
        except KeyError:
            raise Unavailable(f"the store does not say which version of {key!r} it has") from None

    @contextmanager
    def create(self, key: str) -> Iterator[Upload]:
        """See Store. At most one CHUNK is in memory."""
        again = partial(retry.call, patience=self._patience, sleep=self._sleep)
        with completed(Upload(self._bucket, key, again)) as upload:
            yield upload
