from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key

from runner.errors import MachineError, Unavailable
from runner.retry import Patience
from runner.storage import connect, gcs_tokens, ranges
from runner.storage.base import Anew, AwsCredentials, BearerToken, Denied, Location, NotFound, Store, StoreOptions
from runner.storage.gcs_tokens import Identity, Token
from runner.storage.gcs_upload import CHUNK
from tests.objects import get, put
from tests.servers.faulty import ALWAYS, FaultyProxy, faulty
from tests.servers.gcs import STEP, Gcs, crc32c_of
from tests.servers.google import EMAIL, new_key, pem

ROOT = Path(__file__).parents[1]
QUICK = StoreOptions(patience=Patience(total=5, first=0.01, longest=0.1))
ONCE = Patience(total=0)


@pytest.fixture(autouse=True)
def nobody_in_particular(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget the identities of other tests."""
    gcs_tokens.shared.cache_clear()
    monkeypatch.delenv("GCE_METADATA_HOST", raising=False)


@pytest.fixture
def proxy(gcs: Gcs) -> Iterator[FaultyProxy]:
    with faulty(gcs.host) as proxy:
        yield proxy


@pytest.fixture
def bucket(gcs: Gcs) -> str:
    return gcs.bucket()


@pytest.fixture
def objects(gcs: Gcs, proxy: FaultyProxy, bucket: str) -> Store:
    """A store behind the proxy, with a message's token."""
    return store(proxy.host, bucket, BearerToken(gcs.identities.issue()))


def store(host: str, bucket: str, token: BearerToken | None = None, **options: Any) -> Store:
    return connect(Location("gs", "", bucket, ""), token, replace(QUICK, google_endpoint=f"http://{host}", **options))


def actions(objects: Store) -> tuple[Callable[[], object], ...]:
    """All that is done with a store; the last one takes several requests."""
    large = b"x" * (CHUNK + 1)
    return (
        lambda: get(objects, "key"),
        lambda: objects.etag("key"),
        lambda: put(objects, "key", b"x"),
        lambda: put(objects, "key", large),
    )


# Who we are: the message's token


def test_a_messages_token_counts_before_the_runners_own_identity(
    gcs: Gcs, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GCE_METADATA_HOST", gcs.host)
    key_file = gcs.identities.key_file(tmp_path / "key.json", gcs.endpoint)
    objects = store(gcs.host, bucket, BearerToken("stranger"), google_credentials=key_file, google_metadata=True)
    for action in actions(objects):
        with pytest.raises(Denied, match="does not accept the message's token") as raised:
            action()
        assert "stranger" not in str(raised.value)
    assert gcs.identities.metadata_asked == 0


def test_a_messages_token_that_has_expired_is_not_tried_again(gcs: Gcs, proxy: FaultyProxy, bucket: str) -> None:
    token = gcs.identities.issue()
    gcs.identities.tokens[token] = time.time() - 1
    with pytest.raises(Denied, match=f"to read gs://{bucket}/key: it is wrong or has expired"):
        get(store(proxy.host, bucket, BearerToken(token)), "key")
    assert len(proxy.seen) == 1


def test_credentials_of_another_kind_are_denied() -> None:
    with pytest.raises(Denied, match=r"gs://b/k needs a token \(jwt\) or no credentials"):
        connect(Location("gs", "", "b", "k"), AwsCredentials("AKID", "hunter2"), QUICK)


def test_two_empty_keys_are_no_credentials(gcs: Gcs) -> None:
    public = gcs.bucket(public=True)
    gcs.put(public, "key", b"public")
    options = replace(QUICK, google_endpoint=gcs.endpoint)
    assert get(connect(Location("gs", "", public, ""), AwsCredentials("", ""), options), "key") == b"public"


def test_a_token_that_would_break_a_header_is_denied() -> None:
    for token in ("a\r\nx: y", "schlüssel"):
        with pytest.raises(Denied, match="impossible characters"):
            connect(Location("gs", "", "b", "k"), BearerToken(token), QUICK)


# Who we are: a service account


@pytest.fixture
def key_file(gcs: Gcs, tmp_path: Path) -> str:
    return gcs.identities.key_file(tmp_path / "key.json", gcs.endpoint)


def test_a_service_account_signs_in_once_for_all_stores(
    gcs: Gcs, bucket: str, key_file: str, proxy: FaultyProxy
) -> None:
    before = len(gcs.identities.tokens)
    for name in (bucket, gcs.bucket()):
        objects = store(proxy.host, name, google_credentials=key_file)
        put(objects, "key", b"x" * (CHUNK + 1))
        assert get(objects, "key") == b"x" * (CHUNK + 1)
    assert len(gcs.identities.tokens) == before + 1


def test_a_service_account_counts_before_the_machines_identity(
    gcs: Gcs, bucket: str, key_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GCE_METADATA_HOST", gcs.host)
    put(store(gcs.host, bucket, google_credentials=key_file, google_metadata=True), "key", b"x")
    assert gcs.identities.metadata_asked == 0


def test_a_token_that_is_taken_back_is_replaced_in_the_middle_of_an_upload(
    gcs: Gcs, bucket: str, key_file: str
) -> None:
    objects = store(gcs.host, bucket, google_credentials=key_file)
    with objects.create("key") as writer:
        for _ in range(3):
            writer.write(b"x" * CHUNK)
            gcs.identities.tokens.clear()
    assert len(gcs.get(bucket, "key")) == 3 * CHUNK


class Office:
    """Issues tokens, and is their clock."""

    def __init__(self, lifetime: float) -> None:
        self.now, self.issued, self.lifetime = 0.0, 0, lifetime
        self.identity = Identity(self.issue, clock=lambda: self.now)

    def issue(self) -> Token:
        self.issued += 1
        return Token(str(self.issued), "somebody", self.lifetime)

    def at(self, *times: float) -> str:
        """Return which tokens are used then."""
        found = ""
        for self.now in times:
            found += self.identity.token().text
        return found


def test_a_token_is_renewed_in_time_and_not_at_every_call() -> None:
    assert Office(3600).at(0, 1000, 3300, 3400, 6700, 7100) == "111223"
    assert Office(10).at(0, 4, 6, 10, 12) == "11223"


def test_a_token_that_was_refused_is_used_no_more() -> None:
    office = Office(3600)
    assert office.identity.token(refused=office.identity.token()).text == "2"
    assert office.identity.token().text == "2"


def test_a_key_file_that_is_exchanged_counts(gcs: Gcs, bucket: str, tmp_path: Path) -> None:
    key_file = gcs.identities.key_file(tmp_path / "key.json", gcs.endpoint, private_key=pem(new_key()))
    objects = store(gcs.host, bucket, google_credentials=key_file)
    with pytest.raises(MachineError):
        put(objects, "key", b"x")
    gcs.identities.key_file(tmp_path / "key.json", gcs.endpoint)
    put(objects, "key", b"x")


def test_a_key_that_is_not_the_accounts_any_more_is_the_machines_matter(
    gcs: Gcs, bucket: str, tmp_path: Path, proxy: FaultyProxy
) -> None:
    key = pem(new_key())
    key_file = gcs.identities.key_file(tmp_path / "key.json", gcs.endpoint, private_key=key)
    for action in actions(store(proxy.host, bucket, google_credentials=key_file)):
        with pytest.raises(MachineError, match=r"400 invalid_grant; check that the key in .*key.json") as raised:
            action()
        assert EMAIL in str(raised.value)
        assert key not in str(raised.value)
    assert not proxy.seen


def test_clocks_that_differ_are_the_machines_matter(gcs: Gcs, bucket: str, key_file: str) -> None:
    gcs.identities.behind = 1000
    with pytest.raises(MachineError, match="this machine's clock is right"):
        get(store(gcs.host, bucket, google_credentials=key_file), "key")


@pytest.mark.parametrize(
    "changes",
    [
        {"type": "authorized_user"},
        {"private_key": None},
        {"token_uri": "file:///etc/passwd"},
        {"client_email": ""},
    ],
)
def test_a_file_that_is_no_service_account_says_how_to_make_one(
    gcs: Gcs, bucket: str, tmp_path: Path, changes: dict[str, Any]
) -> None:
    key_file = gcs.identities.key_file(tmp_path / "key.json", gcs.endpoint, **changes)
    with pytest.raises(MachineError, match=r"key.json is not the JSON key file of a Google service account"):
        get(store(gcs.host, bucket, google_credentials=key_file), "key")


def elliptic() -> str:
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return generate_private_key(SECP256R1()).private_bytes(*form).decode()


@pytest.mark.parametrize("key", ["no key", elliptic()])
def test_a_key_that_cannot_be_used_is_not_shown(gcs: Gcs, bucket: str, tmp_path: Path, key: str) -> None:
    key_file = gcs.identities.key_file(tmp_path / "key.json", gcs.endpoint, private_key=key)
    with pytest.raises(MachineError, match=f"the private key of service account {EMAIL}") as raised:
        get(store(gcs.host, bucket, google_credentials=key_file), "key")
    assert key not in str(raised.value)


@pytest.mark.parametrize("text", [None, "[1]", "{", "[" * 50_000])
def test_a_key_file_that_cannot_be_read_is_the_machines_matter(
    gcs: Gcs, bucket: str, tmp_path: Path, text: str | None
) -> None:
    path = tmp_path / "key.json"
    if text:
        path.write_text(text)
    with pytest.raises(MachineError, match=r"key\.json"):
        get(store(gcs.host, bucket, google_credentials=str(path)), "key")


@pytest.mark.parametrize("answer", [(503, b""), (429, b""), (200, b"{}"), (200, b'{"access_token": 1}')])
def test_a_token_endpoint_that_is_out_of_order_is_asked_again(
    gcs: Gcs, bucket: str, tmp_path: Path, proxy: FaultyProxy, answer: tuple[int, bytes]
) -> None:
    uri = f"{gcs.endpoint}/token".replace(gcs.host, proxy.host)
    key_file = gcs.identities.key_file(tmp_path / "key.json", gcs.endpoint, token_uri=uri)
    proxy.answer(*answer, times=2)
    put(store(gcs.host, bucket, google_credentials=key_file), "key", b"x")
    assert proxy.seen == ["POST /token"] * 3


# Who we are: the machine


def test_the_machines_own_identity_is_used_where_there_is_no_other(
    gcs: Gcs, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GCE_METADATA_HOST", gcs.host)
    objects = store(gcs.host, bucket, google_metadata=True)
    put(objects, "key", b"x")
    assert get(objects, "key") == b"x"
    assert gcs.identities.metadata_asked == 1


def test_the_metadata_server_is_not_looked_for_beyond_a_proxy(gcs: Gcs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GCE_METADATA_HOST", gcs.host)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    assert gcs_tokens.identity(None, replace(QUICK, google_metadata=True)).token().text in gcs.identities.tokens


def test_a_machine_without_an_identity_reads_what_is_public(
    gcs: Gcs, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GCE_METADATA_HOST", gcs.host)
    gcs.identities.machine = False
    public = gcs.bucket(public=True)
    gcs.put(public, "key", b"public")
    objects = store(proxy.host, public, google_metadata=True)
    for _ in range(3):
        assert get(objects, "key") == b"public"
    assert "authorization" not in proxy.headers[0]
    assert gcs.identities.metadata_asked == 1


def test_the_machine_is_not_asked_where_the_operator_does_not_allow_it(
    gcs: Gcs, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GCE_METADATA_HOST", gcs.host)
    with pytest.raises(Denied, match="anonymous access"):
        get(store(gcs.host, bucket), "key")
    assert gcs.identities.metadata_asked == 0


def test_a_metadata_server_that_is_not_up_yet_is_asked_again(
    gcs: Gcs, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with faulty(gcs.host) as metadata:
        metadata.swallow()
        metadata.answer(503)
        monkeypatch.setenv("GCE_METADATA_HOST", metadata.host)
        put(store(gcs.host, bucket, google_metadata=True), "key", b"x")
        assert len(metadata.seen) == 3


def test_a_metadata_server_that_refuses_is_the_machines_matter(
    gcs: Gcs, proxy: FaultyProxy, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GCE_METADATA_HOST", proxy.host)
    proxy.answer(403)
    with pytest.raises(MachineError, match="gives this machine no token: it answered 403"):
        put(store(gcs.host, bucket, google_metadata=True), "key", b"x")


@pytest.mark.parametrize("product", ["Standard PC", "", None])
def test_another_cloud_has_no_identity_for_us(
    gcs: Gcs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, product: str | None
) -> None:
    public = gcs.bucket(public=True)
    gcs.put(public, "key", b"public")
    if product is not None:
        (tmp_path / "product").write_text(product)
    monkeypatch.setattr(gcs_tokens, "_PRODUCT", tmp_path / "product")
    with faulty(gcs.host) as other:  # it has another metadata server at the same address
        other.answer(401, b"who are you?", times=ALWAYS)
        monkeypatch.setattr(gcs_tokens, "_METADATA_HOST", other.host)
        assert get(store(gcs.host, public, google_metadata=True), "key") == b"public"
        assert len(other.seen) == 1


@pytest.mark.parametrize("product", ["Google Compute Engine\n", "Standard PC\n"])
def test_silence_is_an_answer_everywhere_but_at_googles(
    gcs: Gcs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, product: str
) -> None:
    public = gcs.bucket(public=True)
    gcs.put(public, "key", b"public")
    (tmp_path / "product").write_text(product)
    monkeypatch.setattr(gcs_tokens, "_PRODUCT", tmp_path / "product")
    monkeypatch.setattr(gcs_tokens, "_METADATA_TIMEOUT", (0.2, 0.2))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        host = f"127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setattr(gcs_tokens, "_METADATA_HOST", host)
        objects = store(gcs.host, public, google_metadata=True, patience=ONCE)
        if product.startswith("Google"):
            with pytest.raises(Unavailable, match=f"the metadata server {host} does not answer"):
                get(objects, "key")
        else:
            assert get(objects, "key") == b"public"


# What may not be


def test_what_an_identity_may_not_do_is_denied_and_not_tried_again(
    objects: Store, proxy: FaultyProxy, bucket: str
) -> None:
    body = b'{"error": {"code": 403, "message": "hunter2", "errors": [{"reason": "forbidden"}]}}'
    proxy.answer(403, body, times=ALWAYS)
    for action, verb in zip(actions(objects), ("read", "read", "write", "write"), strict=True):
        proxy.seen.clear()
        with pytest.raises(Denied) as raised:
            action()
        told = f"http://{proxy.host} does not allow the message's token to {verb} gs://{bucket}/key"
        assert str(raised.value) == told
        assert len(proxy.seen) == 1


def test_anonymous_access_to_what_is_private_is_denied(gcs: Gcs, bucket: str) -> None:
    for action in actions(store(gcs.host, bucket)):
        with pytest.raises(Denied, match=r"does not allow anonymous access to (read|write)"):
            action()


def test_a_missing_bucket_is_not_found(gcs: Gcs, objects: Store) -> None:
    objects = store(gcs.host, "nowhere", BearerToken(gcs.identities.issue()))
    read, etag, *writes = actions(objects)
    for action in (read, *writes):
        with pytest.raises(NotFound, match=f"the bucket 'nowhere' does not exist at {gcs.endpoint}"):
            action()
    assert etag() is None


def test_a_refusal_for_another_reason_names_it(objects: Store, proxy: FaultyProxy) -> None:
    proxy.answer(
        400, b'{"error": {"errors": [{"reason": "userProjectMissing"}], "message": "Bucket is requester pays"}}'
    )
    with pytest.raises(Denied, match=r"refuses the message's token to read .*: 400 userProjectMissing$"):
        get(objects, "key")


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"error": "x"}', b'{"error": {"errors": [3]}}'])
def test_a_refusal_that_is_no_json_is_one(objects: Store, proxy: FaultyProxy, body: bytes) -> None:
    proxy.answer(418, body)
    with pytest.raises(Denied, match=r"refuses .*: 418$"):
        get(objects, "key")


def test_a_redirection_to_another_host_is_not_followed(gcs: Gcs, objects: Store, proxy: FaultyProxy) -> None:
    for status in (302, 307, 308):
        proxy.answer(status, headers={"Location": f"http://{gcs.host}/elsewhere"})
        with pytest.raises(Denied, match=str(status)):
            get(objects, "key")


# An endpoint that fails


@pytest.mark.parametrize(
    "answer",
    [
        (429, b""),
        (500, b""),
        (503, b"{}"),
        (408, b""),
        (403, b'{"error": {"errors": [{"reason": "rateLimitExceeded"}]}}'),
    ],
)
def test_an_overloaded_endpoint_is_asked_again(objects: Store, proxy: FaultyProxy, answer: tuple[int, bytes]) -> None:
    data = os.urandom(2 * CHUNK + 1)
    for of in ("uploadType=resumable&name", "upload_id"):
        proxy.answer(*answer, of=of, times=2)
    put(objects, "key", data)
    proxy.answer(*answer, times=2)
    assert get(objects, "key") == data
    proxy.answer(*answer, times=2)
    assert objects.etag("key")
    proxy.answer(*answer, times=2)
    put(objects, "key", b"small")
    assert get(objects, "key") == b"small"


def test_an_endpoint_that_stays_overloaded_is_unavailable_when_patience_ends(
    gcs: Gcs, proxy: FaultyProxy, bucket: str
) -> None:
    proxy.answer(503, times=ALWAYS)
    token, patience = BearerToken(gcs.identities.issue()), Patience(total=0.3, first=0.01, longest=0.1)
    for action in actions(store(proxy.host, bucket, token, patience=patience)):
        proxy.seen.clear()
        with pytest.raises(Unavailable, match="overloaded: it answered 503"):
            action()
        assert len(proxy.seen) > 2


def test_a_connection_that_closes_before_the_answer_is_tried_again(objects: Store, proxy: FaultyProxy) -> None:
    proxy.swallow(times=2)
    put(objects, "key", b"x")
    proxy.swallow(times=2)
    assert get(objects, "key") == b"x"


# Reading


def test_a_stream_that_is_cut_goes_on(gcs: Gcs, objects: Store, proxy: FaultyProxy, bucket: str) -> None:
    data = os.urandom(5 * ranges.PART + 1)
    gcs.put(bucket, "key", data)
    for size in (-1, 1000, 300_000):
        for after in (0, 1, 100_000):
            proxy.cut(after, of="alt=media")
        with objects.open("key") as stored:
            assert stored.size == len(data)
            assert b"".join(iter(partial(stored.stream.read, size), b"")) == data


def test_an_object_that_is_replaced_while_it_is_read_is_not_mixed_with_the_new_one(
    gcs: Gcs, objects: Store, bucket: str
) -> None:
    gcs.put(bucket, "key", b"o" * (4 * ranges.PART))
    with pytest.raises(Unavailable, match=f"gs://{bucket}/key was replaced while it was read"):
        with objects.open("key") as stored:
            stored.stream.read(1)
            gcs.put(bucket, "key", b"n" * (4 * ranges.PART))
            stored.stream.read()


@pytest.mark.parametrize(
    ("size", "composite"), [(1, False), (1000, False), (2 * ranges.PART, False), (1, True), (300_000, True)]
)
def test_what_was_damaged_on_its_way_is_not_taken(
    gcs: Gcs, proxy: FaultyProxy, bucket: str, size: int, composite: bool
) -> None:
    objects = store(proxy.host, bucket, BearerToken(gcs.identities.issue()))
    data = os.urandom(size)
    gcs.put(bucket, "key", data, composite=composite)
    assert get(objects, "key") == data
    stored = gcs.state.objects[bucket]["key"]
    wrong = bytes([data[0] ^ 1]) + data[1:]
    proxy.answer(200, wrong, headers=stored.headers)
    with pytest.raises(Anew, match="'key' was damaged on its way"):
        get(objects, "key")
    assert get(objects, "key") == data


def test_a_large_composite_object_is_read(gcs: Gcs, objects: Store, bucket: str) -> None:
    data = os.urandom(3 * ranges.PART)
    gcs.put(bucket, "key", data, composite=True)
    assert get(objects, "key") == data


def test_an_object_that_is_stored_compressed_is_read_as_it_comes(gcs: Gcs, proxy: FaultyProxy, bucket: str) -> None:
    gcs.put(bucket, "key", b"compressed", encoding="gzip")
    stored = gcs.state.objects[bucket]["key"]
    proxy.answer(200, b"what was compressed", headers=stored.headers)
    assert get(store(proxy.host, bucket, BearerToken(gcs.identities.issue())), "key") == b"what was compressed"


def test_an_answer_with_other_bytes_is_not_taken(gcs: Gcs, objects: Store, proxy: FaultyProxy, bucket: str) -> None:
    data = os.urandom(4 * ranges.PART)
    gcs.put(bucket, "key", data)
    headers = {"content-range": f"bytes 0-9/{len(data)}", **gcs.state.objects[bucket]["key"].headers}
    proxy.answer(206, b"0123456789", headers=headers, of="generation=")
    assert get(objects, "key") == data


@pytest.mark.parametrize("said", ["bytes 0-9/*", "bytes 10-19/300000"])
def test_a_beginning_that_does_not_say_of_how_much_is_not_taken_for_all(
    gcs: Gcs, objects: Store, proxy: FaultyProxy, bucket: str, said: str
) -> None:
    data = os.urandom(300_000)
    gcs.put(bucket, "key", data, composite=True)
    proxy.answer(206, data[:10], headers={"Content-Range": said, "X-Goog-Generation": "1"})
    assert get(objects, "key") == data


def test_an_answer_without_a_version_is_asked_for_again(
    gcs: Gcs, objects: Store, proxy: FaultyProxy, bucket: str
) -> None:
    gcs.put(bucket, "key", b"x")
    proxy.answer(200, b"of a cache between us", times=2)
    assert get(objects, "key") == b"x"


# Writing


def test_one_chunk_goes_up_in_one_request_and_more_in_as_many_as_there_are(
    objects: Store, proxy: FaultyProxy, bucket: str
) -> None:
    put(objects, "key", b"x" * CHUNK)
    assert proxy.seen == [f"POST /upload/storage/v1/b/{bucket}/o?uploadType=media&name=key"]
    proxy.seen.clear()
    put(objects, "key", b"x" * (2 * CHUNK + 1))
    assert [request.split()[0] for request in proxy.seen] == ["POST", "PUT", "PUT", "PUT"]
    assert proxy.connections == 1


def spare(proxy: FaultyProxy, count: int) -> None:
    """Keep faults that are told later from the next requests to an upload: no answer to them is that long."""
    proxy.cut(1 << 20, of="upload_id", times=count)


@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("step", ["begin", 0, 1, 2])
@pytest.mark.parametrize("lost", ["request", "answer"])
def test_an_upload_that_is_cut_at_any_step_goes_on_from_there(
    objects: Store, proxy: FaultyProxy, lost: str, step: str | int, times: int
) -> None:
    data = os.urandom(2 * CHUNK + 1)
    if isinstance(step, int):
        spare(proxy, step)
    of = "upload_id" if isinstance(step, int) else "POST"
    if lost == "answer":
        proxy.swallow(of=of, times=times)
    else:
        proxy.answer(503, of=of, times=times)
    put(objects, "key", data)
    sent = sum(int(headers["content-length"]) for headers in proxy.headers)
    assert get(objects, "key") == data
    assert sent <= len(data) + (CHUNK if lost == "request" else 0)


@pytest.mark.parametrize("keep", [[0], [STEP], [CHUNK - STEP], [STEP, STEP, 0, STEP]])
def test_the_rest_of_a_chunk_of_which_the_store_took_a_part_is_sent(
    gcs: Gcs, objects: Store, bucket: str, keep: list[int]
) -> None:
    data = os.urandom(2 * CHUNK + 2 * STEP)
    gcs.state.keep[:] = keep
    put(objects, "key", data)
    assert gcs.get(bucket, "key") == data


def test_a_last_chunk_that_arrived_and_was_not_answered_is_not_sent_again(
    gcs: Gcs, objects: Store, proxy: FaultyProxy, bucket: str
) -> None:
    data = os.urandom(CHUNK + STEP)
    spare(proxy, 1)
    proxy.swallow(of="upload_id")
    put(objects, "key", data)
    assert [headers["content-range"] for headers in proxy.headers[1:]] == [
        f"bytes 0-{CHUNK - 1}/*",
        f"bytes {CHUNK}-{len(data) - 1}/{len(data)}",
        f"bytes */{len(data)}",
    ]
    assert gcs.get(bucket, "key") == data
    assert gcs.state.generation == gcs.state.objects[bucket]["key"].generation


def test_an_upload_whose_end_is_forgotten_counts_when_the_object_is_ours(
    gcs: Gcs, objects: Store, proxy: FaultyProxy, bucket: str
) -> None:
    data = os.urandom(CHUNK + 1)
    spare(proxy, 1)
    proxy.swallow(of="upload_id")
    proxy.answer(410, of="upload_id")
    put(objects, "key", data)
    assert gcs.get(bucket, "key") == data


@pytest.mark.parametrize("status", [404, 410])
def test_an_upload_that_vanished_has_to_begin_anew(
    gcs: Gcs, objects: Store, proxy: FaultyProxy, bucket: str, status: int
) -> None:
    gcs.put(bucket, "key", b"old")
    for times in (1, 2):  # in its middle, at its end
        proxy.heal()
        with pytest.raises(
            Unavailable, match=f"the upload of gs://{bucket}/key is not known any more: it has to begin"
        ):
            with objects.create("key") as writer:
                writer.write(b"x" * (times * CHUNK + 1))
                proxy.answer(status, of="upload_id=", times=ALWAYS)
                writer.write(b"x" * CHUNK)
    assert gcs.get(bucket, "key") == b"old"


def test_a_store_that_lost_what_it_had_has_to_get_it_anew(gcs: Gcs, objects: Store, proxy: FaultyProxy) -> None:
    with pytest.raises(Anew, match=r"has 0 bytes of the upload .* begin anew"):
        with objects.create("key") as writer:
            writer.write(b"x" * (2 * CHUNK + 1))
            for session in gcs.state.sessions.values():
                session.data.clear()
            proxy.answer(503, of="PUT")
    assert objects.etag("key") is None


def test_who_may_only_write_begins_anew_when_the_last_answer_is_lost(objects: Store, proxy: FaultyProxy) -> None:
    spare(proxy, 1)
    proxy.answer(410, of="upload_id")
    proxy.answer(403, of="GET")
    with pytest.raises(Anew, match="begin anew"):
        put(objects, "key", b"x" * (CHUNK + 1))


def test_a_store_that_takes_an_upload_for_whole_too_early_is_not_believed(objects: Store, proxy: FaultyProxy) -> None:
    proxy.answer(200, b"{}", of="PUT")
    with pytest.raises(Unavailable, match="for whole before its end"):
        put(objects, "key", b"x" * (CHUNK + 1))


def test_a_store_that_takes_nothing_is_unavailable(gcs: Gcs, proxy: FaultyProxy, bucket: str) -> None:
    token, patience = BearerToken(gcs.identities.issue()), Patience(total=0.3, first=0.01, longest=0.1)
    objects = store(proxy.host, bucket, token, patience=patience)
    proxy.answer(308, headers={"Range": f"bytes=0-{CHUNK - 1}"}, of="PUT", times=1)
    proxy.answer(308, headers={"Range": f"bytes=0-{CHUNK}"}, of="PUT", times=ALWAYS)
    with pytest.raises(Unavailable, match="took nothing of 'key'"):
        put(objects, "key", b"x" * (CHUNK + 1))
    assert 3 < len(proxy.seen) < 50


DAMAGED = b'{"error": {"code": 400, "message": "Provided MD5 hash \\"x\\" doesn\'t match calculated MD5 hash"}}'


@pytest.mark.parametrize("answer", [(400, DAMAGED), (200, b'{"md5Hash": "of something else"}')])
def test_what_was_damaged_on_its_way_up_goes_up_anew(
    gcs: Gcs, objects: Store, proxy: FaultyProxy, bucket: str, answer: tuple[int, bytes]
) -> None:
    proxy.answer(*answer)
    put(objects, "key", b"small")
    assert gcs.get(bucket, "key") == b"small"
    spare(proxy, 1)
    proxy.answer(*answer, of="upload_id")
    with pytest.raises(Anew, match=r"damaged on its way.*: it has to begin anew"):
        put(objects, "key", b"x" * (CHUNK + 1))
    assert gcs.get(bucket, "key") == b"small"
    assert gcs.uploads(bucket) == 0


def test_the_token_goes_to_no_other_host_that_an_upload_is_sent_to(
    gcs: Gcs, objects: Store, proxy: FaultyProxy
) -> None:
    with faulty(gcs.host) as other:
        proxy.answer(200, headers={"Location": f"http://{other.host}/upload?upload_id=x"}, of="resumable")
        with pytest.raises(Unavailable, match="is not known any more"):
            put(objects, "key", b"x" * (CHUNK + 1))
        assert not other.seen
    proxy.answer(200, of="resumable")
    with pytest.raises(Unavailable, match="gave the upload of 'key' no name"):
        put(objects, "key", b"x" * (CHUNK + 1))


def test_waiting_is_left_to_the_sleep_that_is_passed_in(gcs: Gcs, proxy: FaultyProxy, bucket: str) -> None:
    slept: list[float] = []
    proxy.answer(503, times=3)
    options = StoreOptions(google_endpoint=f"http://{proxy.host}")
    token = BearerToken(gcs.identities.issue())
    put(connect(Location("gs", "", bucket, ""), token, options, sleep=slept.append), "key", b"x")
    assert len(slept) == 3
    assert sum(slept) > 0.5


def test_memory_stays_flat_whatever_the_size(gcs: Gcs, bucket: str) -> None:
    size = 160 * 1024 * 1024
    program = f"""
import resource
from runner.storage import connect
from runner.storage.base import *
token, options = BearerToken({gcs.identities.issue()!r}), StoreOptions(google_endpoint={gcs.endpoint!r})
store = connect(Location("gs", "", {bucket!r}, ""), token, options)
with store.create("warm") as writer:
    writer.write(b"x")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with store.create("key") as writer:
    for _ in range({size} // CHUNK):
        writer.write(bytes(CHUNK))
with store.open("key") as stored:
    while stored.stream.read(CHUNK):
        pass
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    gcs.state.objects[bucket].clear()
    assert int(done.stdout) < 60 * 1024


def test_the_crc_is_googles() -> None:
    from runner.storage.gcs_check import _Crc32c  # noqa: PLC0415

    crc = _Crc32c()
    for part in (b"1234", b"", b"56789"):
        crc.update(part)
    assert crc.digest() == bytes.fromhex("e3069283")
    assert crc32c_of(b"123456789") == "4waSgw=="
