"""Every fault at every request of every operation: the right bytes, or one clear error, and nothing left behind."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from runner import retry
from runner.errors import RunnerError
from runner.retry import Patience
from runner.storage import ranges, s3_upload, transport
from runner.storage.base import CHUNK, Location, StoreOptions
from runner.storage.s3 import S3Store
from runner.storage.s3_upload import PART
from tests.servers.ceph import S3Server
from tests.servers.faulty import ALWAYS, KINDS, FaultyProxy, faulty

OLD = b"what was there before" * 10
SMALL = os.urandom(100_000)
LARGE = os.urandom(2 * PART + 1000)
# With faults that pass, and with faults that stay.
ENOUGH = Patience(total=10, first=0.01, longest=0.1)
LITTLE = Patience(total=0.3, first=0.01, longest=0.1)


@dataclass
class Scene:
    """A bucket of a server behind a proxy that misbehaves. ``key`` has the old content at first."""

    s3: S3Server
    proxy: FaultyProxy
    bucket: str

    def store(self, patience: Patience = ENOUGH) -> S3Store:
        location = Location("s3", self.proxy.host, self.bucket, "", region="us-west-1")
        return S3Store(location, self.s3.credentials, StoreOptions(patience=patience))

    def read(self, patience: Patience = ENOUGH) -> bytes:
        """Read an object as the runner does: all of it again when it breaks for good, while patience lasts."""
        store = self.store(patience)

        def whole() -> bytes:
            with store.open("key") as stored:
                return b"".join(iter(lambda: stored.stream.read(CHUNK), b""))

        return retry.call(whole, patience)

    def write(self, data: bytes, patience: Patience = ENOUGH) -> None:
        """Write an object in the same way."""
        store = self.store(patience)

        def whole() -> None:
            with store.create("key") as out:
                for start in range(0, len(data), CHUNK):
                    out.write(data[start : start + CHUNK])

        retry.call(whole, patience)

    def content(self) -> bytes:
        return self.s3.call("GET", f"{self.bucket}/key").content


@pytest.fixture(scope="module")
def scene(s3: S3Server) -> Iterator[Scene]:
    with pytest.MonkeyPatch.context() as patch, faulty(s3.host) as proxy:
        patch.setattr(transport, "TIMEOUT", (1.0, 1.0))
        patch.setattr(s3_upload, "_ABORT_PATIENCE", LITTLE)
        patch.setattr(ranges, "_FAST", 1e12)  # large objects come over several connections
        scene = Scene(s3, proxy, s3.bucket())
        scene.write(LARGE, Patience(30))  # a server's first time takes longer
        yield scene


def requests_of(scene: Scene, action: Callable[[], object]) -> int:
    """Count the requests of an operation when nothing is wrong."""
    scene.proxy.seen.clear()
    action()
    return len(scene.proxy.seen)


def patience(times: float) -> Patience:
    return ENOUGH if times == 1 else LITTLE


def outcome(scene: Scene, action: Callable[[], object]) -> RunnerError | None:
    """Do something that may fail in its time, in one clear sentence."""
    started = time.monotonic()
    error = None
    try:
        action()
    except RunnerError as raised:
        error = raised
        assert len(str(error)) > 20
        assert "\n" not in str(error)
    finally:
        scene.proxy.heal()
    assert time.monotonic() - started < 20
    return error


@pytest.mark.parametrize("times", [1, ALWAYS], ids=["once", "from then on"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("data", [SMALL, LARGE], ids=["small", "large"])
def test_a_read_brings_the_right_bytes_or_fails(scene: Scene, data: bytes, kind: str, times: float) -> None:
    scene.write(data)
    got: list[bytes] = []
    for number in range(requests_of(scene, scene.read)):
        got.clear()
        scene.proxy.break_one(kind, number, times=times)
        error = outcome(scene, lambda: got.append(scene.read(patience(times))))
        assert got == ([] if error else [data]), f"request {number}: {error}"
        assert error is None or times != 1, f"request {number}: {error}"


@pytest.mark.parametrize("times", [1, ALWAYS], ids=["once", "from then on"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("data", [SMALL, LARGE], ids=["small", "large"])
def test_a_write_is_whole_or_not_there(scene: Scene, data: bytes, kind: str, times: float) -> None:
    for number in range(requests_of(scene, lambda: scene.write(data))):
        scene.s3.put(scene.bucket, "key", OLD)
        scene.proxy.break_one(kind, number, times=times)
        error = outcome(scene, lambda: scene.write(data, patience(times)))
        content = scene.content()
        assert content in (OLD, data), f"request {number}: neither old nor new, {len(content)} bytes"
        assert error or content == data, f"request {number}: said to be stored, and is not"
        assert error is None or times != 1, f"request {number}: {error}"
        if times == 1:
            assert scene.s3.uploads(scene.bucket) == 0, f"request {number}: parts are left behind"
    scene.write(LARGE)  # what could not be removed while the store was away goes with the next upload
    assert scene.s3.uploads(scene.bucket) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_an_etag_is_right_or_there_is_an_error(scene: Scene, kind: str) -> None:
    scene.write(SMALL)
    etag = scene.store().etag("key")
    for times in (1, ALWAYS):
        got: list[str | None] = []
        scene.proxy.break_one(kind, 0, times=times)
        error = outcome(scene, lambda got=got, times=times: got.append(scene.store(patience(times)).etag("key")))
        assert got == ([] if error else [etag])
        assert error is None or times != 1
