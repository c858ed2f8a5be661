"""What every store promises, over real ones."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from runner.storage import connect
from runner.storage.base import CHUNK, BearerToken, Location, NotFound, Store, StoreOptions
from runner.storage.s3_upload import PART
from tests.servers.ceph import S3Server
from tests.servers.gcs import Gcs

SIZES = [0, 1, 1000, PART - 1, PART, PART + 1, 20 * 1024 * 1024 + 7]
KEYS = [
    "plain",
    "deep/er/key.tar",
    "a space",
    "ünï/cödé ☃.bin",
    "ü +%25=&.bin",
    "question?mark#hash",
    "quote'\"<>&;:@$,!*()[]{}|\\^`~",
    "trailing.",
    ".hidden",
    "k" * 200,
]
# A file system, rightly, takes these to be other names.
S3_KEYS = ["a//b", "//a", "a/../b", "./a", "a/./b", "../../a", "a/"]


# A store, and what counts the leftovers of failed uploads in it.
Stores = tuple[Store, Callable[[], int]]


@pytest.fixture(params=["file", "s3", "s3 by tls", "swift", "moto", "gcs", "gcs_emulator"])
def stores(request: pytest.FixtureRequest, tmp_path: Path) -> Stores:
    kind = request.param
    if kind == "file":
        return in_files(tmp_path)
    if kind.startswith("gcs"):
        return in_gcs(request.getfixturevalue(kind))
    if kind == "s3 by tls":
        return by_tls(request.getfixturevalue("s3"))
    server = request.getfixturevalue(kind)
    return in_s3(server if isinstance(server, S3Server) else S3Server(f"127.0.0.1:{server.port}", region="us-east-1"))


def in_files(directory: Path) -> Stores:
    (directory / "bucket").mkdir()
    location = Location("file", "", str(directory / "bucket"), "")
    store = connect(location, None, StoreOptions(file_roots=(str(directory),)))
    return store, lambda: len(list(directory.rglob("*.part")))


def in_gcs(gcs: Gcs) -> Stores:
    bucket = gcs.bucket()
    token, options = BearerToken(gcs.identities.issue()), StoreOptions(google_endpoint=gcs.endpoint)
    return connect(Location("gs", "", bucket, ""), token, options), lambda: gcs.uploads(bucket)


def in_s3(s3: S3Server) -> Stores:
    bucket = s3.bucket()
    location = Location("s3", s3.host, bucket, "", region=s3.region)
    return connect(location, s3.credentials, StoreOptions()), lambda: s3.uploads(bucket)


def by_tls(s3: S3Server) -> Stores:
    bucket = s3.bucket()
    location = Location("s3", s3.tls_host, bucket, "", region=s3.region)
    return connect(location, s3.credentials, StoreOptions(s3_ca=s3.ca)), lambda: s3.uploads(bucket)


@pytest.fixture
def store(stores: Stores) -> Store:
    return stores[0]


def put(store: Store, key: str, data: bytes) -> None:
    with store.create(key) as writer:
        view = memoryview(data)
        for start in range(0, len(data), CHUNK):
            assert writer.write(bytes(view[start : start + CHUNK])) == len(view[start : start + CHUNK])


def get(store: Store, key: str) -> bytes:
    with store.open(key) as stored:
        chunks = list(iter(lambda: stored.stream.read(CHUNK), b""))
    assert all(len(chunk) <= CHUNK for chunk in chunks)
    return b"".join(chunks)


@pytest.mark.parametrize("size", SIZES)
def test_an_object_of_any_size_comes_back_as_it_was_written(store: Store, size: int) -> None:
    data = os.urandom(size)
    put(store, "key", data)
    assert get(store, "key") == data
    with store.open("key") as stored:
        assert stored.size == size
        assert stored.stream.read() == data
        assert stored.stream.read() == b""


@pytest.mark.parametrize("key", KEYS)
def test_odd_keys_name_the_objects_that_they_say(store: Store, key: str) -> None:
    put(store, key, key.encode())
    assert get(store, key) == key.encode()
    assert store.etag(key) is not None


@pytest.mark.parametrize("key", S3_KEYS)
def test_an_s3_key_is_text_and_no_path(s3: S3Server, key: str) -> None:
    location = Location("s3", s3.host, s3.bucket(), "", region="us-west-1")
    store = connect(location, s3.credentials, StoreOptions())
    for other in ("a/b", "b", "a"):
        put(store, other, b"another object")
    put(store, key, key.encode())
    assert get(store, key) == key.encode()
    assert get(store, "a/b") == get(store, "b") == get(store, "a") == b"another object"


def test_a_missing_object_is_not_found_and_has_no_etag(store: Store) -> None:
    assert store.etag("missing") is None
    with pytest.raises(NotFound, match="missing does not exist"):
        get(store, "missing")


def test_the_etag_is_that_of_the_open_object_and_changes_with_the_content(store: Store) -> None:
    put(store, "key", b"one")
    with store.open("key") as stored:
        first = stored.etag
    assert first
    assert store.etag("key") == store.etag("key") == first
    put(store, "key", b"two")
    assert store.etag("key") not in (None, first)


@pytest.mark.parametrize("size", [10, 2 * PART + 1])
def test_an_exception_leaves_nothing_visible_and_nothing_behind(stores: Stores, size: int) -> None:
    store, leftovers = stores
    with pytest.raises(KeyboardInterrupt):
        with store.create("key") as writer:
            writer.write(b"x" * size)
            raise KeyboardInterrupt
    assert store.etag("key") is None
    assert leftovers() == 0


@pytest.mark.parametrize("size", [10, 2 * PART + 1])
def test_the_old_object_stays_until_the_new_one_is_whole(stores: Stores, size: int) -> None:
    store, leftovers = stores
    put(store, "key", b"old")
    with store.create("key") as writer:
        writer.write(b"x" * size)
        assert get(store, "key") == b"old"
    assert get(store, "key") == b"x" * size
    assert leftovers() == 0


def test_an_overwrite_that_fails_leaves_the_old_object(store: Store) -> None:
    put(store, "key", b"old")
    with pytest.raises(ZeroDivisionError):
        with store.create("key") as writer:
            writer.write(b"new")
            raise ZeroDivisionError
    assert get(store, "key") == b"old"


def test_whoever_reads_the_old_object_reads_all_of_it(store: Store) -> None:
    old, new = b"o" * (4 * CHUNK), b"n" * (4 * CHUNK)
    put(store, "key", old)
    with store.open("key") as stored:
        start = stored.stream.read(CHUNK)
        put(store, "key", new)
        rest = b"".join(iter(lambda: stored.stream.read(CHUNK), b""))
    assert start + rest == old
    assert get(store, "key") == new


def test_a_reader_may_stop_before_the_end(store: Store) -> None:
    put(store, "key", b"x" * PART)
    for _ in range(3):
        with store.open("key") as stored:
            assert stored.stream.read(10) == b"x" * 10
    assert len(get(store, "key")) == PART
