from __future__ import annotations

import os
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from runner.errors import MachineError, Unavailable
from runner.retry import Patience
from runner.storage import connect, ranges, s3_wire
from runner.storage.base import Anew, AwsCredentials, Denied, Location, NotFound, StoreOptions
from runner.storage.s3 import S3Store
from runner.storage.s3_upload import PART, PARTS_OF_A_SIZE, part_size
from tests.objects import get, put
from tests.servers import tcp
from tests.servers.ceph import S3Server
from tests.servers.certificates import self_signed
from tests.servers.faulty import ALWAYS, FaultyProxy, faulty

ROOT = Path(__file__).parents[1]
SECRET = "studiomltestsecret"
QUICK = StoreOptions(patience=Patience(total=5, first=0.01, longest=0.1))
ONCE = StoreOptions(patience=Patience(total=0))


@pytest.fixture
def proxy(s3: S3Server) -> Iterator[FaultyProxy]:
    with faulty(s3.host) as proxy:
        yield proxy


@pytest.fixture
def bucket(s3: S3Server) -> str:
    return s3.bucket()


def store(
    host: str, bucket: str, credentials: AwsCredentials, options: StoreOptions = QUICK, region: str = "us-west-1"
) -> S3Store:
    return S3Store(Location("s3", host, bucket, "", region=region), credentials, options)


# Credentials


def test_a_wrong_secret_is_denied_and_not_tried_again(s3: S3Server, proxy: FaultyProxy, bucket: str) -> None:
    s3.put(bucket, "key", b"x", acl="public-read")
    objects = store(proxy.host, bucket, replace(s3.credentials, secret_key="wrong" * 8))
    for action in (lambda: get(objects, "key"), lambda: put(objects, "key", b"y")):
        proxy.seen.clear()
        with pytest.raises(
            Denied, match=r"secret key does not belong to access key stud….*check the credentials"
        ) as raised:
            action()
        assert f"http://{proxy.host}" in str(raised.value)
        assert f"{bucket}/key" in str(raised.value)
        assert s3.access_key not in str(raised.value)
        assert "wrong" not in str(raised.value)
        assert len(proxy.seen) == 1
    with pytest.raises(Denied, match="secret key"):
        objects.etag("key")


def test_an_unknown_access_key_is_denied(s3: S3Server, bucket: str) -> None:
    s3.put(bucket, "key", b"x")
    objects = store(s3.host, bucket, AwsCredentials("UNKNOWNKEY", SECRET))
    for action in (lambda: get(objects, "key"), lambda: objects.etag("key"), lambda: put(objects, "key", b"y")):
        with pytest.raises(Denied, match=r"does not know access key UNKN…") as raised:
            action()
        assert SECRET not in str(raised.value)


def test_a_missing_bucket_is_not_found(s3: S3Server) -> None:
    objects = store(s3.host, "nowhere", s3.credentials)
    for action in (
        lambda: get(objects, "key"),
        lambda: put(objects, "key", b"y"),
        lambda: put(objects, "key", b"y" * 2 * PART),
    ):
        with pytest.raises(NotFound, match=f"the bucket 'nowhere' does not exist at http://{s3.host}"):
            action()
    assert objects.etag("key") is None


def test_anonymous_access_to_a_private_object_is_denied(s3: S3Server, bucket: str) -> None:
    s3.put(bucket, "key", b"x")
    objects = store(s3.host, bucket, AwsCredentials("", ""))
    for action in (lambda: get(objects, "key"), lambda: objects.etag("key"), lambda: put(objects, "new", b"y")):
        with pytest.raises(Denied, match=r"does not allow anonymous access to (read|write)"):
            action()


def test_anonymous_requests_are_not_signed_and_read_what_is_public(s3: S3Server, bucket: str) -> None:
    s3.put(bucket, "key", b"public", acl="public-read")
    objects = store(s3.host, bucket, AwsCredentials("", ""))
    assert get(objects, "key") == b"public"
    assert objects.etag("key")


def test_a_read_that_is_denied_with_credentials_is_tried_once_more_anonymously(
    s3: S3Server, proxy: FaultyProxy, bucket: str
) -> None:
    s3.put(bucket, "key", b"public", acl="public-read")
    objects = store(proxy.host, bucket, s3.credentials)
    denied = b"<Error><Code>AccessDenied</Code></Error>"
    proxy.answer(403, denied)
    assert get(objects, "key") == b"public"
    assert proxy.seen == [f"GET /{bucket}/key"] * 2
    assert "authorization" not in proxy.headers[1]
    proxy.answer(403, times=1)
    proxy.answer(403, denied)
    assert objects.etag("key") == store(s3.host, bucket, s3.credentials).etag("key")


def test_a_read_that_is_denied_both_ways_says_what_the_credentials_may_not(
    s3: S3Server, proxy: FaultyProxy, bucket: str
) -> None:
    s3.put(bucket, "key", b"private")
    proxy.answer(403, b"<Error><Code>AccessDenied</Code></Error>")
    with pytest.raises(Denied, match=r"does not allow access key stud… to read"):
        get(store(proxy.host, bucket, s3.credentials), "key")
    assert len(proxy.seen) == 2


def test_a_write_that_is_denied_is_not_tried_anonymously(s3: S3Server, proxy: FaultyProxy, bucket: str) -> None:
    proxy.answer(403, b"<Error><Code>AccessDenied</Code></Error>", times=ALWAYS)
    with pytest.raises(Denied, match=r"does not allow access key stud… to write"):
        put(store(proxy.host, bucket, s3.credentials), "key", b"x")
    assert len(proxy.seen) == 1


def test_a_session_token_is_sent_signed_and_never_told(s3: S3Server, proxy: FaultyProxy, bucket: str) -> None:
    objects = store(proxy.host, bucket, replace(s3.credentials, session_token="temporary-token"))
    put(objects, "key", b"x")
    assert proxy.headers[0]["x-amz-security-token"] == "temporary-token"
    assert "x-amz-security-token" in proxy.headers[0]["authorization"]
    proxy.answer(400, b"<Error><Code>ExpiredToken</Code><Token>temporary-token</Token></Error>")
    with pytest.raises(Denied, match="400 ExpiredToken") as raised:
        get(objects, "key")
    assert "temporary-token" not in str(raised.value)


def test_a_refusal_for_another_reason_names_it(s3: S3Server, proxy: FaultyProxy, bucket: str) -> None:
    proxy.answer(403, b"<Error><Code>QuotaExceeded</Code></Error>", times=ALWAYS)
    with pytest.raises(Denied, match=r"refuses access key stud… to write .*: 403 QuotaExceeded$"):
        put(store(proxy.host, bucket, s3.credentials), "key", b"x")
    assert len(proxy.seen) == 1


def test_credentials_that_would_break_a_header_are_denied(s3: S3Server, bucket: str) -> None:
    for credentials in (
        AwsCredentials("key\r\nx: y", SECRET),
        AwsCredentials("schlüssel", SECRET),
        AwsCredentials("key", SECRET, session_token="a\nb"),
    ):
        with pytest.raises(Denied, match="impossible characters"):
            store(s3.host, bucket, credentials)


def test_a_netrc_file_does_not_replace_the_signature(
    s3: S3Server, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3.put(bucket, "key", b"x")
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login somebody password else\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert get(store(s3.host, bucket, s3.credentials), "key") == b"x"


def test_clocks_that_differ_are_this_machines_matter(s3: S3Server, proxy: FaultyProxy, bucket: str) -> None:
    proxy.answer(403, b"<Error><Code>RequestTimeTooSkewed</Code></Error>")
    with pytest.raises(MachineError, match="clock"):
        get(store(proxy.host, bucket, s3.credentials), "key")


# Regions and redirections


@pytest.mark.parametrize(
    "answer",
    [
        (400, b"<Error><Code>AuthorizationHeaderMalformed</Code><Region>eu-north-1</Region></Error>", {}),
        (301, b"<Error><Code>PermanentRedirect</Code></Error>", {"x-amz-bucket-region": "eu-north-1"}),
        (307, b"", {"x-amz-bucket-region": "eu-north-1", "Location": "http://127.0.0.1:1/elsewhere"}),
    ],
)
def test_the_buckets_own_region_is_followed_and_remembered(
    s3: S3Server, proxy: FaultyProxy, bucket: str, answer: tuple[int, bytes, dict[str, str]]
) -> None:
    status, body, headers = answer
    objects = store(proxy.host, bucket, s3.credentials, ONCE)
    proxy.answer(status, body, headers=headers)
    put(objects, "key", b"x")
    assert proxy.seen == [f"PUT /{bucket}/key"] * 2
    assert get(objects, "key") == b"x"
    assert len(proxy.seen) == 3
    assert ["/eu-north-1/s3/" in headers["authorization"] for headers in proxy.headers] == [False, True, True]


def test_a_region_is_followed_only_once(s3: S3Server, proxy: FaultyProxy, bucket: str) -> None:
    for number in range(10):
        proxy.answer(400, b"<Error><Code>AuthorizationHeaderMalformed</Code><Region>r-%d</Region></Error>" % number)
    with pytest.raises(Denied, match="400 AuthorizationHeaderMalformed"):
        get(store(proxy.host, bucket, s3.credentials), "key")
    assert len(proxy.seen) == 2


def test_a_redirection_to_another_host_is_not_followed(s3: S3Server, proxy: FaultyProxy, bucket: str) -> None:
    proxy.answer(301, headers={"Location": f"http://{s3.host}/{bucket}/key"}, times=ALWAYS)
    with pytest.raises(Denied, match="301"):
        get(store(proxy.host, bucket, s3.credentials), "key")
    assert len(proxy.seen) == 1


# An endpoint that fails


@pytest.mark.parametrize("status", [429, 500, 503, 507])
def test_an_overloaded_endpoint_is_asked_again(s3: S3Server, proxy: FaultyProxy, bucket: str, status: int) -> None:
    objects = store(proxy.host, bucket, s3.credentials)
    data = os.urandom(2 * PART + 1)
    proxy.answer(status, times=2)
    put(objects, "key", data)
    proxy.answer(status, times=2)
    assert get(objects, "key") == data
    proxy.answer(status, times=2)
    assert objects.etag("key")


@pytest.mark.parametrize("code", ["SlowDown", "RequestTimeout", "InternalError", "BadDigest"])
def test_what_the_endpoint_calls_passing_is_tried_again(
    s3: S3Server, proxy: FaultyProxy, bucket: str, code: str
) -> None:
    proxy.answer(400, f"<Error><Code>{code}</Code></Error>".encode(), times=2)
    put(store(proxy.host, bucket, s3.credentials), "key", b"x")
    assert len(proxy.seen) == 3


def test_an_endpoint_that_stays_overloaded_is_unavailable_when_patience_ends(
    s3: S3Server, proxy: FaultyProxy, bucket: str
) -> None:
    proxy.answer(503, b"<Error><Code>SlowDown</Code></Error>", times=ALWAYS)
    options = StoreOptions(patience=Patience(total=0.3, first=0.01, longest=0.1))
    objects = store(proxy.host, bucket, s3.credentials, options)
    for action in (lambda: get(objects, "key"), lambda: objects.etag("key"), lambda: put(objects, "key", b"x")):
        proxy.seen.clear()
        with pytest.raises(Unavailable, match="overloaded: it answered 503"):
            action()
        assert len(proxy.seen) > 2


def test_waiting_is_left_to_the_sleep_that_is_passed_in(s3: S3Server, proxy: FaultyProxy, bucket: str) -> None:
    slept: list[float] = []
    proxy.answer(503, times=3)
    location = Location("s3", proxy.host, bucket, "", region="us-west-1")
    put(S3Store(location, s3.credentials, StoreOptions(), sleep=slept.append), "key", b"x")
    assert len(slept) == 3
    assert sum(slept) > 0.5


def test_a_refused_connection_is_unavailable() -> None:
    with socket.socket() as taken:  # bound, but not listening: nobody else can take the port
        taken.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(Unavailable, match=f"http://{host} does not answer as it should: .*Connection refused"):
            get(store(host, "bucket", AwsCredentials("AKID", SECRET), ONCE), "key")


def test_a_stream_that_is_cut_goes_on_where_it_broke(s3: S3Server, proxy: FaultyProxy, bucket: str) -> None:
    data = os.urandom(300_000)
    s3.put(bucket, "key", data)
    objects = store(proxy.host, bucket, s3.credentials)
    for size in (-1, 1000, 200_000, 1 << 20):
        proxy.headers.clear()
        proxy.cut(100_000, times=2)
        got = bytearray()
        with objects.open("key") as stored:
            while part := stored.stream.read(size):
                got += part
        assert got == data
        assert proxy.headers[2]["range"] != "bytes=0-299999"
        assert [headers["if-match"] is not None for headers in proxy.headers] == [False, True, True]


def test_a_stream_that_is_always_cut_does_not_look_whole(s3: S3Server, proxy: FaultyProxy, bucket: str) -> None:
    s3.put(bucket, "key", os.urandom(300_000))
    proxy.cut(0, times=ALWAYS)
    options = StoreOptions(patience=Patience(total=0.3, first=0.01, longest=0.1))
    with pytest.raises(Unavailable, match="'key'"):
        get(store(proxy.host, bucket, s3.credentials, options), "key")


def test_a_store_that_ignores_conditions_does_not_mix_two_objects(
    s3: S3Server, proxy: FaultyProxy, bucket: str
) -> None:
    s3.put(bucket, "key", b"o" * 300_000)
    proxy.cut(100_000)
    with store(proxy.host, bucket, s3.credentials).open("key") as stored:
        assert stored.stream.read(1000) == b"o" * 1000
        said = {"ETag": '"new"', "Content-Range": "bytes 100000-299999/300000"}
        proxy.answer(206, b"n" * 200_000, headers=said, times=ALWAYS)
        with pytest.raises(Anew, match="was replaced while it was read"):
            while stored.stream.read(1000):
                pass


@pytest.mark.parametrize("said", ["bytes 0-9/*", "bytes=0-9/300000", ""])
def test_a_beginning_that_does_not_say_of_how_much_is_not_taken_for_all(
    s3: S3Server, proxy: FaultyProxy, bucket: str, said: str
) -> None:
    data = os.urandom(300_000)
    s3.put(bucket, "key", data)
    proxy.answer(206, data[:10], headers={"ETag": '"of-another-kind"', "Content-Range": said})
    assert get(store(proxy.host, bucket, s3.credentials), "key") == data


def test_an_object_that_is_replaced_while_it_is_read_breaks_the_stream(
    s3: S3Server, proxy: FaultyProxy, bucket: str
) -> None:
    s3.put(bucket, "key", b"o" * 300_000)
    proxy.cut(100_000)
    with store(proxy.host, bucket, s3.credentials).open("key") as stored:
        assert stored.stream.read(1000) == b"o" * 1000
        s3.put(bucket, "key", b"n" * 300_000)
        with pytest.raises(Unavailable, match="was replaced while it was read"):
            while stored.stream.read(1000):
                pass


def test_a_connection_that_closes_before_the_answer_is_tried_again(
    s3: S3Server, proxy: FaultyProxy, bucket: str
) -> None:
    objects = store(proxy.host, bucket, s3.credentials)
    proxy.swallow(of="PUT", times=2)
    put(objects, "key", b"x")
    proxy.swallow(of="GET", times=2)
    assert get(objects, "key") == b"x"


def test_connections_are_kept(s3: S3Server, proxy: FaultyProxy, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranges, "_FAST", 0)  # or a busy machine's downloads come over many
    objects = store(proxy.host, bucket, s3.credentials)
    put(objects, "key", b"x" * (2 * PART + 1))
    for _ in range(3):
        assert len(get(objects, "key")) == 2 * PART + 1
        assert objects.etag("missing") is None
        with pytest.raises(NotFound):
            get(objects, "missing")
    assert proxy.connections <= 4, "one for each part that was under way"


# Uploads in parts


def test_a_completion_whose_answer_is_lost_counts(s3: S3Server, proxy: FaultyProxy, bucket: str) -> None:
    data = os.urandom(2 * PART + 1)
    proxy.swallow(of="?uploadId=")
    proxy.answer(404, b"<Error><Code>NoSuchUpload</Code></Error>", of="?uploadId=")  # Ceph would say yes again
    put(store(proxy.host, bucket, s3.credentials), "key", data)
    assert [request.split()[0] for request in proxy.seen[-3:]] == ["POST", "POST", "HEAD"]
    assert get(store(s3.host, bucket, s3.credentials), "key") == data


def test_who_may_only_write_begins_anew_when_the_answer_to_a_completion_is_lost(
    s3: S3Server, proxy: FaultyProxy, bucket: str
) -> None:
    proxy.answer(404, b"<Error><Code>NoSuchUpload</Code></Error>", of="POST /" + bucket + "/key?uploadId=")
    proxy.answer(403, of="HEAD")
    with pytest.raises(Anew, match="not completed"):
        put(store(proxy.host, bucket, s3.credentials), "key", b"x" * (PART + 1))


def test_an_upload_that_somebody_else_aborted_is_not_taken_for_stored(
    s3: S3Server, proxy: FaultyProxy, bucket: str
) -> None:
    s3.put(bucket, "key", b"old")
    proxy.answer(404, b"<Error><Code>NoSuchUpload</Code></Error>", of="POST /" + bucket + "/key?uploadId=")
    with pytest.raises(Anew, match="not completed"):
        put(store(proxy.host, bucket, s3.credentials), "key", b"x" * (PART + 1))
    assert get(store(s3.host, bucket, s3.credentials), "key") == b"old"


def test_a_completion_that_fails_after_its_200_is_tried_again(s3: S3Server, proxy: FaultyProxy, bucket: str) -> None:
    data = os.urandom(PART + 1)
    proxy.answer(200, b'<?xml version="1.0"?>\n<Error><Code>InternalError</Code></Error>', of="?uploadId=")
    put(store(proxy.host, bucket, s3.credentials), "key", data)
    assert get(store(s3.host, bucket, s3.credentials), "key") == data


@pytest.mark.parametrize("body", [b"", b"<Error><Code>Inter", b"<Error><Code>InvalidPart</Code></Error>"])
def test_an_object_that_was_not_completed_is_not_taken_for_stored(
    s3: S3Server, proxy: FaultyProxy, bucket: str, body: bytes
) -> None:
    s3.put(bucket, "key", b"old")
    proxy.answer(200, body, of="?uploadId=")
    with pytest.raises((Unavailable, Denied)):
        put(store(proxy.host, bucket, s3.credentials), "key", b"x" * (PART + 1))
    assert get(store(s3.host, bucket, s3.credentials), "key") == b"old"
    assert s3.uploads(bucket) == 0


def test_an_upload_whose_parts_fail_is_aborted(s3: S3Server, proxy: FaultyProxy, bucket: str) -> None:
    proxy.answer(403, b"<Error><Code>AccessDenied</Code></Error>", of="partNumber=2")
    with pytest.raises(Denied):
        put(store(proxy.host, bucket, s3.credentials), "key", b"x" * (2 * PART + 1))
    assert s3.uploads(bucket) == 0
    assert proxy.seen[-1].startswith("DELETE")


def test_an_upload_whose_name_was_damaged_on_the_way_is_aborted(s3: S3Server, proxy: FaultyProxy, bucket: str) -> None:
    proxy.damage(b"</UploadId>", of="POST /" + bucket + "/key?uploads=")
    with pytest.raises(Anew, match="aborted by somebody else"):
        put(store(proxy.host, bucket, s3.credentials), "key", b"x" * (PART + 1))
    assert s3.uploads(bucket) == 0


def test_an_abort_that_fails_does_not_hide_why(s3: S3Server, proxy: FaultyProxy, bucket: str) -> None:
    proxy.answer(403, of="DELETE")
    with pytest.raises(ZeroDivisionError):
        with store(proxy.host, bucket, s3.credentials).create("key") as writer:
            writer.write(b"x" * (2 * PART))
            raise ZeroDivisionError


def test_the_largest_upload_has_no_more_parts_than_s3_takes() -> None:
    assert part_size(1) == part_size(PARTS_OF_A_SIZE) == PART
    assert part_size(PARTS_OF_A_SIZE + 1) == 2 * PART
    assert sum(map(part_size, range(1, 10_001))) == 496 * 2**30 * 1000 // 1024
    assert part_size(10_000) <= 5 * 2**30


# Hostile answers


def test_a_document_type_is_refused_before_its_entities_can_grow() -> None:
    bomb = b'<!DOCTYPE a [<!ENTITY b "xxxxxxxxxx"><!ENTITY c "&b;&b;&b;&b;">]><Error><Code>&c;</Code></Error>'
    assert s3_wire.parse(bomb) == {}
    assert s3_wire.parse(bomb.decode().encode("utf-16")) == {}


def test_a_broken_document_is_read_as_far_as_it_is_good() -> None:
    assert s3_wire.parse(b"") == s3_wire.parse(b"404 not found") == s3_wire.parse(b"\xff\xfe\x00") == {}
    text = b'<?xml version="1.0"?><Error xmlns="http://s3/"><Code>NoSuchKey</Code><Message>Th'
    assert s3_wire.parse(text) == {"Code": ["NoSuchKey"]}
    assert s3_wire.parse(b'<?xml version="1.0" encoding="nonsense"?><a/>') == {}


def test_no_more_of_a_refusal_is_read_than_a_refusal_needs(s3: S3Server, proxy: FaultyProxy, bucket: str) -> None:
    proxy.answer(418, b"<Error><Code>" + b"<b>" * 1_000_000)
    with pytest.raises(Denied, match=r"refuses access key stud… to read .*: 418$"):
        get(store(proxy.host, bucket, s3.credentials), "key")


def test_an_error_code_cannot_write_into_the_log(s3: S3Server, proxy: FaultyProxy, bucket: str) -> None:
    proxy.answer(418, b"<Error><Code>Bad\n2026 INFO all is {secret} well</Code></Error>")
    with pytest.raises(Denied, match=r"418 Bad2026INFOallissecretwell$"):
        get(store(proxy.host, bucket, s3.credentials), "key")


# TLS and proxies


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[str, str]:
    """A self-signed certificate for 127.0.0.1 and its key."""
    return self_signed(tmp_path)


def test_tls_is_verified_with_the_operators_authorities_and_certificate(
    s3: S3Server, bucket: str, certificate: tuple[str, str]
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    context.load_verify_locations(certificate[0])
    context.verify_mode = ssl.CERT_REQUIRED
    context.maximum_version = ssl.TLSVersion.TLSv1_2  # where a missing client certificate shows in the handshake
    s3.put(bucket, "key", b"x")
    with faulty(s3.host, tls=context) as proxy:
        location = Location("s3", proxy.host, bucket, "", tls=True, region="us-west-1")
        with pytest.raises(MachineError, match=f"certificate of https://{proxy.host} is not trusted.*--s3-ca"):
            get(S3Store(location, s3.credentials, QUICK), "key")
        trusting = replace(ONCE, s3_ca=certificate[0])
        with pytest.raises(Unavailable):
            get(S3Store(location, s3.credentials, trusting), "key")
        known = replace(trusting, s3_cert=certificate[0], s3_key=certificate[1])
        assert get(S3Store(location, s3.credentials, known), "key") == b"x"
        # Options that are for TLS alone mean TLS, also where the message does not say so.
        unsaid = replace(location, tls=False)
        assert get(connect(unsaid, s3.credentials, known), "key") == b"x"
        with pytest.raises(MachineError, match=f"certificate of https://{proxy.host} is not trusted"):
            get(connect(unsaid, s3.credentials, replace(known, s3_ca="")), "key")


def test_a_certificate_file_that_is_not_there_is_the_operators_matter() -> None:
    location = Location("s3", "127.0.0.1:1", "bucket", "", tls=True, region="us-west-1")
    with pytest.raises(MachineError, match="--s3-ca"):
        get(S3Store(location, AwsCredentials("AKID", SECRET), replace(ONCE, s3_ca="/nowhere/ca.pem")), "key")


def test_the_proxy_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with faulty("127.0.0.1:1") as proxy:
        monkeypatch.setenv("http_proxy", f"http://{proxy.host}")
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        proxy.answer(200, b"content")
        assert get(store("s3.invalid", "bucket", AwsCredentials("AKID", SECRET), ONCE), "key") == b"content"
        assert proxy.seen == ["GET http://s3.invalid/bucket/key"]


# Memory


@pytest.mark.parametrize("rate", [0, 80_000_000], ids=["one connection", "eight slow ones"])
def test_memory_stays_flat_while_large_objects_stream(s3: S3Server, bucket: str, rate: int) -> None:
    program = """
import sys
from runner.storage.base import *
from runner.storage.s3 import S3Store

def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))

host, bucket, access, secret = sys.argv[1:]
store = S3Store(Location("s3", host, bucket, "", region="us-west-1"), AwsCredentials(access, secret), StoreOptions())
before = peak()
chunk = b"x" * CHUNK
with store.create("key") as writer:
    for _ in range(800):
        writer.write(chunk)
size = 0
with store.open("key") as stored:
    while data := stored.stream.read(CHUNK):
        size += len(data)
assert size == 800 * CHUNK, size
print(peak() - before)
"""
    with tcp.proxied(int(s3.host.rpartition(":")[2])) as proxy:
        proxy.rate = rate
        arguments = [f"127.0.0.1:{proxy.port}", bucket, s3.access_key, s3.secret_key]
        command = [sys.executable, "-c", program, *arguments]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=300)
    grown = int(done.stdout)
    print(f"grew by {grown} KiB")
    assert grown < 52 * 1024
