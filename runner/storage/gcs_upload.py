"""An object on its way into Google Cloud Storage.

The protocol: https://cloud.google.com/storage/docs/resumable-uploads
"""

from __future__ import annotations

import hashlib
import re
from base64 import b64encode
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any
from urllib.parse import parse_qs, urlsplit

from runner.errors import RunnerError, Unavailable
from runner.retry import Patience
from runner.storage.base import Anew, Denied, NotFound
from runner.storage.gcs_wire import Bucket, Call, Gone, encode
from runner.storage.transport import WHOLE

# Bytes that go up in one request. Google's rule: a multiple of 256 KiB.
CHUNK = 8 * 1024 * 1024

# Cleaning up is a courtesy that must not keep a dying attempt.
_ABORT_PATIENCE = Patience(total=10)


class Upload:
    """An object on its way up: one chunk of it is gathered in memory, the store has the earlier ones.

    ``again`` calls something for as long as it is Unavailable and patience lasts.
    """

    def __init__(self, bucket: Bucket, key: str, again: Callable[[Callable[[], None]], None]) -> None:
        self._bucket, self._key, self._again = bucket, key, again
        self._chunk, self._filled = memoryview(bytearray(CHUNK)), 0
        self._start = 0  # of the chunk, within the object
        self._held = 0  # bytes that the store has
        self._doubtful = False  # whether that is so
        self._query = ""
        self._digest = hashlib.md5(usedforsecurity=False)

    def write(self, data: bytes, /) -> int:
        """See Writer."""
        self._digest.update(data)
        rest = memoryview(data)
        while rest:
            if self._filled == CHUNK:
                self._send_chunk()
            taken = min(len(rest), CHUNK - self._filled)
            self._chunk[self._filled : self._filled + taken] = rest[:taken]
            self._filled += taken
            rest = rest[taken:]
        return len(data)

    def finish(self) -> None:
        """Make the object visible."""
        if self._query:
            self._send(last=True)
            return
        query = f"uploadType=media&name={encode(self._key)}"
        body = self._chunk[: self._filled]
        put = Call("POST", self._key, "bucket", query, {"x-goog-hash": f"md5={self._md5}"}, body)
        self._again(lambda: self._check(self._bucket.once(put).members, Unavailable))

    def abort(self) -> None:
        """Remove the bytes that are there, if any, and if it can be done."""
        if self._query:
            with suppress(RunnerError):  # 499 is its way to say yes
                self._bucket.ask(Call("DELETE", self._key, "session", self._query, body=b""), patience=_ABORT_PATIENCE)

    @property
    def _md5(self) -> str:
        return b64encode(self._digest.digest()).decode()

    @property
    def _end(self) -> int:
        return self._start + self._filled

    def _send_chunk(self) -> None:
        if not self._query:
            self._begin()
        self._send(last=False)
        self._start, self._filled = self._end, 0

    def _begin(self) -> None:
        query = f"uploadType=resumable&name={encode(self._key)}"
        answer = self._bucket.ask(Call("POST", self._key, "bucket", query, body=b""))
        # Of its address only the name is used: our token goes to our endpoint and nowhere else.
        name = _name_in(answer.headers.get("location", ""))
        if not name:
            raise Unavailable(f"the store gave the upload of {self._key!r} no name")
        self._query = f"uploadType=resumable&upload_id={encode(name)}"

    def _send(self, *, last: bool) -> None:
        """Have the store take all that is gathered, and make an object of it if it is the last of it."""
        try:
            self._again(partial(self._advance, last=last))
        except Gone as error:
            if not (last and self._completed()):
                raise Anew(f"{error}: it has to begin anew") from error

    def _advance(self, *, last: bool) -> None:
        """Go on from where the store stands, until it has all. After a failure it is asked where that is."""
        total = str(self._end) if last else "*"
        done = self._doubtful and self._put(f"bytes */{total}", b"", last=last)
        while not done and (last or self._held < self._end):
            before = self._held
            body = self._chunk[self._held - self._start : self._filled]
            span = f"{self._held}-{self._end - 1}" if body else "*"
            done = self._put(f"bytes {span}/{total}", body, last=last)
            if not done and self._held <= before:
                raise Unavailable(f"the store took nothing of {self._key!r}")

    def _put(self, span: str, body: bytes | memoryview, *, last: bool) -> bool:
        """Send a request to the session, and learn what it holds; true when the object is whole."""
        self._doubtful = True
        headers = {"content-range": span, **({"x-goog-hash": f"md5={self._md5}"} if last else {})}
        answer = self._bucket.once(Call("PUT", self._key, "session", self._query, headers, body))
        if answer.status == 308:
            held = _held(answer.headers)
            if not self._start <= held <= self._end:
                raise Gone(f"the store has {held} bytes of the upload of {self._key!r}, and not those that it had")
            self._held, self._doubtful = held, False
            return False
        if not last:
            raise Gone(f"the store took the upload of {self._key!r} for whole before its end")
        self._check(answer.members, Gone)
        return True

    def _check(self, members: Mapping[str, Any], error: type[RunnerError]) -> None:
        """Make sure that the store has what was sent, also where it did not look at our hash."""
        if members.get("md5Hash") not in (None, self._md5):
            raise error(f"{self._key!r} was damaged on its way")

    def _completed(self) -> bool:
        """Tell whether a try succeeded whose answer was lost: then the object is the one that we sent."""
        try:
            found = self._bucket.ask(Call("GET", self._key, "object", "fields=md5Hash"))
        except (NotFound, Denied):  # who may write need not be allowed to read
            return False
        return found.members.get("md5Hash") == self._md5


def _name_in(address: str) -> str:
    """Return the upload's name that its address has in it, "" when there is none."""
    try:
        return parse_qs(urlsplit(address).query).get("upload_id", [""])[0]
    except ValueError:
        return ""


def _held(headers: Mapping[str, str]) -> int:
    """Return how many bytes an upload has; without a Range there are none."""
    found = re.fullmatch(f"bytes=0-({WHOLE})", headers.get("range", ""))
    return int(found[1]) + 1 if found else 0
