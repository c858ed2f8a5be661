"""Hostile stores: whatever a server answers, byte for byte, it is an object or an error of ours.

An input is what a server sends, within ``hostile``: the first letter says what is asked of it, ``NEXT`` begins the
answer over the next connection, and when there is no more, connections are refused.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from unittest.mock import patch

from runner.errors import RunnerError
from runner.message.fields import printable
from runner.retry import Patience
from runner.storage import connections, gcs_tokens, gcs_upload, gcs_wire, ranges, s3_upload, s3_wire
from runner.storage.base import AwsCredentials, BearerToken, Location, Store, StoreOptions
from runner.storage.gcs import GcsStore
from runner.storage.http import HttpStore
from runner.storage.s3 import S3Store
from tests.fuzz.conversations import KEY, NEXT

_ONCE = Patience(total=0)
_OPTIONS = StoreOptions(google_endpoint="http://gcs.test", patience=_ONCE)
# What is read of one object at most: a header may promise anything.
_ENOUGH = 1024 * 1024


def check_s3(data: bytes) -> None:
    """Ask an S3 server."""
    location = Location("s3", "s3.test", "bucket", "", region="us-west-1")
    _check(S3Store(location, AwsCredentials("key", "secret"), _OPTIONS, sleep=_no_sleep), data)


def check_gcs(data: bytes) -> None:
    """Ask Google Cloud Storage, or what a machine of Google's says that it is."""
    if data[:1] == b"m":
        _SERVER.begin(data[1:])
        with _sentence():
            gcs_tokens._of_machine("metadata.test")
        return
    _check(GcsStore(Location("gs", "", "bucket", ""), BearerToken("token"), _OPTIONS, sleep=_no_sleep), data)


def check_http(data: bytes) -> None:
    """Ask a web server."""
    _check(HttpStore(Location("http", "http.test", "", ""), BearerToken("token"), _OPTIONS, sleep=_no_sleep), data)


def check_answers(data: bytes) -> None:
    """Read what is no object: XML and JSON, and what they mean; the first byte is the status."""
    status, text = 200 + 2 * data[0] if data else 200, data[1:]
    s3, gcs = _wires()
    request = s3_wire.Call("GET", KEY)
    with _sentence():
        raise s3._meaning(status, s3_wire.parse(text), request, AwsCredentials("key", "secret"))
    members = gcs_tokens.parse(text)
    gcs_tokens._granted(members, "nobody")
    with _sentence():
        raise gcs._meaning(status, members, gcs_wire.Call("GET", KEY, "object", ""), gcs_tokens.ANONYMOUS)


@cache
def _wires() -> tuple[s3_wire.Bucket, gcs_wire.Bucket]:
    s3 = Location("s3", "s3.test", "bucket", "", region="us-west-1")
    return (
        s3_wire.Bucket(s3, AwsCredentials("key", "secret"), _OPTIONS),
        gcs_wire.Bucket(Location("gs", "", "bucket", ""), BearerToken("token"), _OPTIONS),
    )


def _no_sleep(_seconds: float) -> None:
    pass


def _check(store: Store, data: bytes) -> None:
    _SERVER.begin(data[1:])
    with _sentence():
        if data[:1] == b"e":
            etag = store.etag(KEY)
            assert etag is None or isinstance(etag, str)
        elif data[:1] == b"w":
            with store.create(KEY) as writer:
                writer.write(b"0123456789" * 5)
        else:
            _read(store)


def _read(store: Store) -> None:
    with store.open(KEY) as stored:
        size = 0
        while size < _ENOUGH and (piece := stored.stream.read(16 * 1024)):
            size += len(piece)
        assert stored.size in (None, size) or size >= _ENOUGH, "an object looks whole that is not"


@contextmanager
def _sentence() -> Iterator[None]:
    """Let nothing pass but errors of ours, each a sentence that can be shown."""
    try:
        yield
    except RunnerError as error:
        assert len(str(error)) < 4000, "an error's sentence is endless"
        assert printable(str(error)), "an error's sentence breaks its line"


class _Server:
    """What is connected to whoever connects while ``hostile`` is entered."""

    def __init__(self) -> None:
        self._answers: Iterator[bytes] = iter(())
        self._open: list[socket.socket] = []

    def begin(self, data: bytes) -> None:
        """Send this from now on, to nobody who is connected yet."""
        while self._open:
            self._open.pop().close()
        self._answers = iter(data.split(NEXT)[:10])

    def connect(self, *_: object) -> socket.socket:
        answer = next(self._answers, None)
        if answer is None:
            raise ConnectionRefusedError(111, "Connection refused")
        client, server = socket.socketpair()
        self._open.append(server)
        server.sendall(answer)
        server.shutdown(socket.SHUT_WR)
        return client


_SERVER = _Server()


@contextmanager
def hostile() -> Iterator[None]:
    """Be the network; let transfers take several requests, and none of them wait."""
    with (
        patch.object(connections._Checked, "_new_conn", _SERVER.connect),
        patch.object(socket, "create_connection", _SERVER.connect),
        patch.multiple(s3_upload, PART=16, _MEMORY=64, _ABORT_PATIENCE=_ONCE),
        patch.multiple(gcs_upload, CHUNK=16, _ABORT_PATIENCE=_ONCE),
        patch.multiple(ranges, PART=16, _STRETCH=64),
    ):
        yield
    _SERVER.begin(b"")
