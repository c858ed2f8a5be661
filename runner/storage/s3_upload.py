"""Objects of unknown length on their way to S3: in one piece if they are small, in parts side by side otherwise."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from typing import cast
from xml.sax.saxutils import escape

from runner.errors import RunnerError, Unavailable
from runner.retry import Patience
from runner.storage.base import Anew, Denied, NotFound
from runner.storage.s3_wire import Bucket, Call
from runner.storage.sigv4 import encode

# Bytes of the first parts of an upload, and the largest object that goes up in one piece. At least 5 MiB by S3's rules.
PART = 8 * 1024 * 1024
# S3 takes 10,000 parts: with sizes that double every so many of them, that is 496 GiB.
PARTS_OF_A_SIZE = 2000
# Bytes of all parts that are in memory at one time, as long as two fit: the one that is gathered, and those under way.
_MEMORY = 6 * PART

# Cleaning up is a courtesy that must not keep a dying attempt.
_ABORT_PATIENCE = Patience(total=10)
_ONCE = Patience(total=0)
# Seconds between two looks at whether the writer may go on waiting.
_LOOK = 0.25


class Upload:
    """An object on its way up: one part is gathered while those before it are sent. See Writer.

    ``pause`` is how the writer waits until parts are sent: it may raise. Threads live until ``finish`` or ``abort``.
    """

    def __init__(self, bucket: Bucket, key: str, *, pause: Callable[[float], None]) -> None:
        self._bucket, self._key, self._pause = bucket, key, pause
        self._part, self._filled = bytearray(PART), 0
        self._query = ""
        self._pool: ThreadPoolExecutor | None = None
        self._closed = threading.Event()
        self._parts: list[Future[str]] = []
        self._under_way: set[Future[str]] = set()
        self._free: list[bytearray] = []

    def write(self, data: bytes, /) -> int:
        """See Writer."""
        rest = memoryview(data)
        while rest:
            if self._filled == len(self._part):
                self._pass_on()
            taken = min(len(rest), len(self._part) - self._filled)
            self._part[self._filled : self._filled + taken] = rest[:taken]
            self._filled += taken
            rest = rest[taken:]
        return len(data)

    def finish(self) -> None:
        """Make the object visible."""
        if not self._query:
            self._bucket.ask(Call("PUT", self._key, body=memoryview(self._part)[: self._filled]))
        else:
            self._pass_on()
            self._await(below=1)
            self._complete([part.result() for part in self._parts])
        self._close()

    def abort(self) -> None:
        """Remove the parts that are there, if any, and if it can be done."""
        self._close()  # first, for a part that comes later would stay
        if self._query:
            try:
                self._bucket.ask(Call("DELETE", self._key, self._query), patience=_ABORT_PATIENCE)
            except NotFound:  # its name was damaged on the way, or nothing is left of it
                self._forget_others()
            except RunnerError:
                return

    def _close(self) -> None:
        """End all threads, and let go of the memory."""
        self._closed.set()
        if self._pool:
            self._pool.shutdown(cancel_futures=True)
        self._part, self._free = bytearray(), []

    def _begin(self) -> None:
        self._query = f"?uploadId={encode(self._bucket.patiently(self._named))}"
        self._pool = ThreadPoolExecutor(_most_under_way(PART), "part")

    def _named(self) -> str:
        """Begin an upload in one try, and return its name; one whose name got lost goes with the next try."""
        self._forget_others()
        name = self._bucket.ask(Call("POST", self._key, "?uploads="), patience=_ONCE).fields.first("UploadId")
        if not name:
            raise Unavailable(f"the store gave the upload of {self._key!r} no name")
        return name

    def _forget_others(self) -> None:
        """Remove what an upload of this key has left that was killed: nobody else has a reason to write it now."""
        with suppress(RunnerError):  # it may be forbidden, or unknown to the store
            answer = self._bucket.ask(
                Call("GET", "", f"?prefix={encode(self._key)}&uploads="), patience=_ABORT_PATIENCE
            )
            for key, name in zip(answer.fields.get("Key", []), answer.fields.get("UploadId", []), strict=False):
                if key == self._key:
                    self._bucket.ask(Call("DELETE", self._key, f"?uploadId={encode(name)}"), patience=_ONCE)

    def _pass_on(self) -> None:
        """Send the part that is full, and go on with an empty one."""
        if self._pool is None:
            self._begin()
        number = len(self._parts) + 1
        part = cast("ThreadPoolExecutor", self._pool).submit(self._send, number, self._part, self._filled)
        self._parts.append(part)
        self._under_way.add(part)
        size = part_size(number + 1)
        self._await(below=_most_under_way(size))
        self._part = self._free.pop() if self._free and len(self._free[-1]) == size else bytearray(size)
        self._filled = 0

    def _await(self, *, below: int) -> None:
        """Wait until fewer than that many parts are under way. Raises what went wrong with any that has ended."""
        while len(self._under_way) >= below:
            done, self._under_way = wait(self._under_way, _LOOK, FIRST_COMPLETED)
            for part in done:
                part.result()
            self._pause(0)

    def _send(self, number: int, part: bytearray, filled: int) -> str:
        """Send a part, in a thread; returns its ETag."""
        query = f"?partNumber={number}&{self._query[1:]}"
        try:
            answer = self._bucket.ask(Call("PUT", self._key, query, memoryview(part)[:filled]), sleep=self._sleep)
        except NotFound as error:  # another upload may go well
            raise Anew(str(error)) from error
        self._free.append(part)
        return answer.headers.get("etag", "")

    def _sleep(self, seconds: float) -> None:
        if self._closed.wait(seconds):
            raise RunnerError("nobody wants it any more")

    def _complete(self, etags: list[str]) -> None:
        parts = "".join(
            f"<Part><PartNumber>{number}</PartNumber><ETag>{escape(etag)}</ETag></Part>"
            for number, etag in enumerate(etags, start=1)
        )
        document = f"<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>".encode()
        try:
            answer = self._bucket.ask(Call("POST", self._key, self._query, document))
            done = "CompleteMultipartUploadResult" in answer.fields
        except NotFound:  # there is no such upload: any more, perhaps
            done = False
        if not done and not self._completed(etags):
            raise Anew(f"the upload of {self._key!r} was not completed")

    def _completed(self, etags: list[str]) -> bool:
        """Tell whether a try succeeded whose answer was lost: then the object has the ETag that our parts make."""
        try:
            found = self._bucket.ask(Call("HEAD", self._key)).headers.get("etag")
            digests = b"".join(bytes.fromhex(bare(etag)) for etag in etags)
        except (NotFound, Denied, ValueError):  # who may write need not be allowed to read
            return False
        return bare(found) == f"{hashlib.md5(digests, usedforsecurity=False).hexdigest()}-{len(etags)}"


def _most_under_way(size: int) -> int:
    return max(1, _MEMORY // size - 1)


def part_size(number: int) -> int:
    """Return the size in bytes of the part with this number, counted from 1."""
    return PART << (number - 1) // PARTS_OF_A_SIZE


def bare(etag: str | None) -> str:
    """Return an ETag without its quotes."""
    return (etag or "").removeprefix("W/").strip('"')
