from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from runner.errors import MachineError
from runner.storage import connect
from runner.storage.base import AwsCredentials, BearerToken, Denied, Location, StoreOptions, locate


@pytest.mark.parametrize(
    ("qualified", "location"),
    [
        ("s3://127.0.0.1:9000/b/k/l.tar", Location("s3", "127.0.0.1:9000", "b", "k/l.tar")),
        ("s3://host/b/a %41?x#y", Location("s3", "host", "b", "a %41?x#y")),
        ("s3://host.:65535/b/k", Location("s3", "host.:65535", "b", "k")),
        ("s3://host:9000//b/k//l", Location("s3", "host:9000", "b", "k//l")),
        ("s3://[::1]:9000/b/k", Location("s3", "[::1]:9000", "b", "k")),
        ("s3://s3.amazonaws.com/b/k", Location("s3", "s3.amazonaws.com", "b", "k", tls=True, region="us-east-1")),
        (
            "s3://s3-us-west-2.amazonaws.com/b/k",
            Location("s3", "s3-us-west-2.amazonaws.com", "b", "k", tls=True, region="us-west-2"),
        ),
        (
            "s3://s3.eu-central-1.amazonaws.com/b/k",
            Location("s3", "s3.eu-central-1.amazonaws.com", "b", "k", tls=True, region="eu-central-1"),
        ),
        ("s3://s3.amazonaws.com.evil.org/b/k", Location("s3", "s3.amazonaws.com.evil.org", "b", "k")),
        ("gs://b/k/l", Location("gs", "", "b", "k/l")),
        ("file:///data/objects/k.tar", Location("file", "", "/data/objects", "k.tar")),
        ("file://localhost/data/a%20b", Location("file", "", "/data", "a b")),
        ("file:///k", Location("file", "", "/", "k")),
        ("file://data/objects/k.tar", Location("file", "", "/data/objects", "k.tar")),
        ("http://host:8080/a/b?c=d#e", Location("http", "host:8080", "", "a/b?c=d")),
        ("HTTPS://Host/", Location("https", "host", "", "")),
    ],
)
def test_a_url_names_a_place(qualified: str, location: Location) -> None:
    assert locate(qualified) == location


def test_bucket_and_key_win_over_the_path() -> None:
    assert locate("s3://host/b/k", bucket="c", key="l/m") == Location("s3", "host", "c", "l/m")
    assert locate("gs://b/k", key="l") == Location("gs", "", "b", "l")


def test_a_host_that_the_client_took_for_the_bucket_is_none() -> None:
    """It does so where the host has no port, and no .com at its end."""
    where = Location("s3", "minio.example.org", "b", "k/l.tar")
    assert locate("s3://minio.example.org/b/k/l.tar", bucket="minio.example.org", key="k/l.tar") == where
    assert locate("s3://minio.example.org/b/k/l.tar", bucket="Minio.example.org") == where
    # There may be a bucket of that name all the same.
    assert locate("s3://minio/minio/k", bucket="minio", key="k") == Location("s3", "minio", "minio", "k")
    for path in ("", "k"):
        assert locate(f"s3://minio/{path}", bucket="minio", key="k") == Location("s3", "minio", "minio", "k")


def test_the_key_of_a_file_says_where_its_bucket_ends() -> None:
    assert locate("file:///data/a/b/k.tar", bucket="x", key="b/k.tar") == Location("file", "", "/data/a", "b/k.tar")
    assert locate("file:///b/k.tar", key="b/k.tar") == Location("file", "", "/", "b/k.tar")
    assert locate("file:///data/k.tar", key="other") == Location("file", "", "/data", "k.tar")


@pytest.mark.parametrize(
    "qualified",
    [
        "",
        "no url",
        "ftp://host/a",
        "s3://",
        "s3:///b/k",
        "s3://host",
        "s3://host/b",
        "s3://host/b/",
        "s3://user:hunter2@host/b/k",
        "s3://ho st/b/k",
        "s3://host\r\nx: y/b/k",
        "s3://host:port/b/k",
        "s3://host:65536/b/k",
        "s3://a..b/b/k",
        "s3://.host/b/k",
        f"http://{'a' * 64}.org/a",
        "http://[::1::2]/a",
        "http://[...]/a",
        "s3://host/../k",
        "s3://host/b/\udc80",
        "gs://b",
        "file://host",
        "file:///",
        "file:///data/",
        "file:///data/%00",
        "http://user:hunter2@host/a",
    ],
)
def test_a_bad_url_is_refused_and_not_repeated(qualified: str) -> None:
    with pytest.raises(ValueError, match=r"artifact|file://") as raised:
        locate(qualified)
    assert "hunter2" not in str(raised.value)
    assert type(raised.value) is ValueError


def test_a_location_prints_as_its_url() -> None:
    for url in ("s3://host:9000/b/k/l", "gs://b/k", "file:///data/k", "file:///k", "https://host/a"):
        assert str(locate(url)) == url


def test_a_query_is_not_printed_for_it_may_be_a_signature() -> None:
    assert str(locate("https://host/a/b?X-Amz-Signature=hunter2")) == "https://host/a/b?…"


def test_a_container_image_is_in_no_store() -> None:
    with pytest.raises(MachineError, match=r"only s3://, gs://, file://, http://, https://"):
        connect(Location("docker", "", "", "image"), None, StoreOptions())


@pytest.mark.parametrize("credentials", [None, BearerToken("hunter2")])
def test_s3_needs_a_key_pair(credentials: BearerToken | None) -> None:
    with pytest.raises(Denied, match="anonymous") as raised:
        connect(locate("s3://host/b/k"), credentials, StoreOptions())
    assert "hunter2" not in str(raised.value)


def test_credentials_never_print_their_secrets() -> None:
    assert "hunter2" not in repr(AwsCredentials("AKID", "hunter2", session_token="hunter2"))


def test_a_file_store_does_not_load_the_http_client() -> None:
    program = (
        "import sys; from runner.storage import connect; from runner.storage.base import *;"
        "connect(Location('file', '', '/tmp', 'k'), None, StoreOptions()); sys.exit('requests' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parents[1], check=False).returncode == 0


@pytest.mark.parametrize("url", ["s3://host/bucket/a\nb", "gs://bucket/a\nb", "file:///a\nb", "http://host/a\nb"])
def test_a_location_stays_in_its_line_where_it_is_shown(url: str) -> None:
    assert str(locate(url)).endswith("a%0Ab")
