"""Every fault at every request of every operation: the right bytes, or one clear error, and nothing left behind."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from runner import retry
from runner.errors import RunnerError
from runner.retry import Patience
from runner.storage import connect, gcs_tokens, gcs_upload, ranges, s3_upload, transport
from runner.storage.base import CHUNK, Credentials, Location, Store, StoreOptions
from runner.storage.s3_upload import PART
from tests.servers.ceph import S3Server
from tests.servers.faulty import ALWAYS, KINDS, FaultyProxy, faulty
from tests.servers.gcs import Gcs
from tests.servers.http import HttpServer, Served, serving

OLD = b"what was there before" * 10
SMALL = os.urandom(100_000)
LARGE = os.urandom(2 * PART + 1000)
# What is large elsewhere, where parts may be smaller than those of S3.
STEP = 512 * 1024
# Connections that broke are left to the garbage collector.
pytestmark = [
    pytest.mark.servers,
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
# With faults that pass, and with faults that stay.
ENOUGH = Patience(total=30, first=0.01, longest=0.1)
LITTLE = Patience(total=0.3, first=0.01, longest=0.1)


@dataclass
class Scene:
    """A place in a store behind a proxy that misbehaves; ``put``, ``content`` and ``leftovers`` go round the proxy.

    ``untold`` are the faults that nothing in what comes can tell, ``final`` those after which an operation may fail
    though they pass.
    """

    proxy: FaultyProxy
    location: Location
    credentials: Credentials | None
    options: dict[str, Any]
    put: Callable[[bytes], object]
    content: Callable[[], bytes]
    leftovers: Callable[[], int]
    large: bytes = LARGE[: 2 * STEP + 1000]
    untold: tuple[str, ...] = ()
    final: tuple[str, ...] = ()

    def store(self, patience: Patience = ENOUGH) -> Store:
        """Connect anew: who we are has to be found out again too."""
        gcs_tokens.shared.cache_clear()
        return connect(self.location, self.credentials, StoreOptions(patience=patience, **self.options))

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


def in_s3(s3: S3Server, proxy: FaultyProxy) -> Scene:
    bucket = s3.bucket()
    return Scene(
        proxy,
        Location("s3", proxy.host, bucket, "", region=s3.region),
        s3.credentials,
        {},
        put=lambda data: s3.put(bucket, "key", data),
        content=lambda: s3.call("GET", f"{bucket}/key").content,
        leftovers=lambda: s3.uploads(bucket),
        large=LARGE,
        final=("damaged answer",),  # an upload's name that was damaged is nobody's
    )


def in_gcs(gcs: Gcs, proxy: FaultyProxy, directory: Path) -> Scene:
    """Whose token endpoint is behind the proxy too."""
    bucket = gcs.bucket()
    key_file = gcs.identities.key_file(directory / "key.json", f"http://{proxy.host}")
    return Scene(
        proxy,
        Location("gs", "", bucket, ""),
        None,
        {"google_endpoint": f"http://{proxy.host}", "google_credentials": key_file},
        put=lambda data: gcs.put(bucket, "key", data),
        content=lambda: gcs.get(bucket, "key"),
        # An upload that was begun and never heard of again is invisible, costs nothing and ends by itself.
        leftovers=lambda: 0,
        final=("damaged request",),  # a signature that was damaged is refused for good
    )


def at_a_url(server: HttpServer, proxy: FaultyProxy) -> Scene:
    return Scene(
        proxy,
        Location("http", proxy.host, "", ""),
        None,
        {},
        put=lambda data: server.objects.update({"/key": Served(data, {"ETag": f'"{hash(data)}"'})}),
        content=lambda: server.objects["/key"].body,
        leftovers=lambda: 0,
        untold=("damaged answer", "too short"),  # that takes a hash, which the message may have, or TLS
        final=("too long",),
    )


@pytest.fixture(scope="module")
def impatient() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transport, "TIMEOUT", (1.0, 1.0))
        for module in (s3_upload, gcs_upload):
            patch.setattr(module, "_ABORT_PATIENCE", LITTLE)
        patch.setattr(ranges, "_FAST", 1e12)  # large objects come over several connections
        yield


@pytest.fixture(scope="module", params=["s3", "gcs", "http"])
def scene(request: pytest.FixtureRequest, impatient: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with ExitStack() as stack:
        if request.param != "s3":
            patch = stack.enter_context(pytest.MonkeyPatch.context())
            patch.setattr(ranges, "PART", STEP)
            patch.setattr(gcs_upload, "CHUNK", STEP)
        if request.param == "s3":
            s3 = request.getfixturevalue("s3")
            scene = in_s3(s3, stack.enter_context(faulty(s3.host)))
            for _ in range(2):  # a server's first time takes longer, and may leave something that goes with the next
                scene.write(LARGE, Patience(30))
        elif request.param == "gcs":
            gcs = request.getfixturevalue("gcs_server")
            scene = in_gcs(gcs, stack.enter_context(faulty(gcs.host)), tmp_path_factory.mktemp("gcs"))
        else:
            server = stack.enter_context(serving())
            scene = at_a_url(server, stack.enter_context(faulty(server.host)))
        yield scene
        gcs_tokens.shared.cache_clear()


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
    assert time.monotonic() - started < 60
    return error


@pytest.mark.parametrize("times", [1, ALWAYS], ids=["once", "from then on"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", ["small", "large"])
def test_a_read_brings_the_right_bytes_or_fails(scene: Scene, size: str, kind: str, times: float) -> None:
    data = scene.large if size == "large" else SMALL
    if kind in scene.untold:
        pytest.skip("nothing tells")
    scene.put(data)
    got: list[bytes] = []
    for number in range(requests_of(scene, scene.read)):
        got.clear()
        scene.proxy.break_one(kind, number, times=times)
        error = outcome(scene, lambda: got.append(scene.read(patience(times))))
        assert got == ([] if error else [data]), f"request {number}: {error}"
        assert error is None or times != 1 or kind in scene.final, f"request {number}: {error}"


@pytest.mark.parametrize("times", [1, ALWAYS], ids=["once", "from then on"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", ["small", "large"])
def test_a_write_is_whole_or_not_there(scene: Scene, size: str, kind: str, times: float) -> None:
    data = scene.large if size == "large" else SMALL
    if scene.location.scheme == "http":
        pytest.skip("nothing is written there")
    for number in range(requests_of(scene, lambda: scene.write(data))):
        scene.put(OLD)
        scene.proxy.break_one(kind, number, times=times)
        error = outcome(scene, lambda: scene.write(data, patience(times)))
        content = scene.content()
        assert content in (OLD, data), f"request {number}: neither old nor new, {len(content)} bytes"
        assert error or content == data, f"request {number}: said to be stored, and is not"
        assert error is None or times != 1 or kind in scene.final, f"request {number}: {error}"
        if times == 1:
            assert scene.leftovers() == 0, f"request {number}: parts are left behind"
    scene.write(scene.large)  # what could not be removed while the store was away goes with the next upload
    assert scene.leftovers() == 0


@pytest.mark.parametrize("kind", KINDS)
def test_an_etag_is_right_or_there_is_an_error(scene: Scene, kind: str) -> None:
    if kind == "damaged answer" and scene.location.scheme == "gs":
        pytest.skip("nothing tells: the generation is a mere number in the answer")
    scene.put(SMALL)
    etag = scene.store().etag("key")
    for times in (1, ALWAYS):
        got: list[str | None] = []
        scene.proxy.break_one(kind, 0, times=times)
        error = outcome(scene, lambda got=got, times=times: got.append(scene.store(patience(times)).etag("key")))
        assert got == ([] if error else [etag])
        assert error is None or times != 1 or kind in scene.final


@pytest.mark.parametrize("kind", KINDS)
def test_the_machines_own_identity_is_had_or_there_is_an_error(
    impatient: None, gcs_server: Gcs, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    bucket = gcs_server.bucket()
    gcs_server.put(bucket, "key", SMALL)
    with faulty(gcs_server.host) as metadata:
        monkeypatch.setenv("GCE_METADATA_HOST", metadata.host)
        options = {"google_endpoint": f"http://{gcs_server.host}", "google_metadata": True}
        nothing = lambda *_: b""  # noqa: E731
        scene = Scene(metadata, Location("gs", "", bucket, ""), None, options, nothing, nothing, lambda: 0)
        for times in (1, ALWAYS):
            got: list[bytes] = []
            metadata.seen.clear()
            metadata.break_one(kind, 0, times=times)
            error = outcome(scene, lambda got=got, times=times: got.append(scene.read(patience(times))))
            assert metadata.seen, f"the metadata server is asked: {error} {got}"
            assert got == ([] if error else [SMALL])
            # A token that was damaged is refused as one that was never valid, unless what it is in cannot be read.
            assert error is None or times != 1 or kind == "damaged answer", error
    gcs_tokens.shared.cache_clear()
