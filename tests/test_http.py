from __future__ import annotations

import base64
import gzip
import io
import os
import socket
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path
from typing import BinaryIO

import pytest

from runner.artifacts.artifacts import Artifacts
from runner.artifacts.budget import Budget
from runner.errors import ExperimentError, MachineError, RunnerError, Unavailable
from runner.message.request import Artifact
from runner.place import Place, placed
from runner.retry import Patience
from runner.storage import connect, connections, ranges, transport
from runner.storage.base import (
    AwsCredentials,
    BasicCredentials,
    BearerToken,
    Credentials,
    Denied,
    NotFound,
    Store,
    StoreOptions,
    locate,
)
from runner.storage.stores import Stores
from tests.objects import get
from tests.servers.certificates import self_signed
from tests.servers.faulty import FaultyProxy, faulty
from tests.servers.http import HttpServer, Served, serving

QUICK = StoreOptions(patience=Patience(total=5, first=0.01, longest=0.1))
ONCE = StoreOptions(patience=Patience(total=0))
PLAIN = BasicCredentials("mé", "hunter2:x")
BASIC = "Basic " + base64.b64encode("mé:hunter2:x".encode()).decode()


@pytest.fixture
def server() -> Iterator[HttpServer]:
    with serving() as server:
        yield server


@pytest.fixture
def other() -> Iterator[HttpServer]:
    with serving() as server:
        yield server


@pytest.fixture
def proxy(server: HttpServer) -> Iterator[FaultyProxy]:
    with faulty(server.host) as proxy:
        yield proxy


def store(
    host: str, credentials: Credentials | None = None, options: StoreOptions = QUICK, scheme: str = "http"
) -> Store:
    return connect(locate(f"{scheme}://{host}/"), credentials, options)


# Objects and their names


def test_an_object_is_read_as_it_is(server: HttpServer) -> None:
    data = os.urandom(1_000_000)
    server.objects["/a/b?c=%2F&d"] = Served(data, {"ETag": '"v1"'})
    objects = store(server.host)
    with objects.open("a/b?c=%2F&d") as stored:
        assert (stored.size, stored.etag) == (len(data), "v1")
        assert b"".join(iter(lambda: stored.stream.read(70_000), b"")) == data
        assert stored.stream.read() == stored.stream.read(5) == b""
    assert server.headers[0]["Accept-Encoding"] == "identity"


@pytest.mark.parametrize("name", ["/a%20b.txt", "/%C3%BC/100%25", "/a%0D%0Ax:%20y"])
def test_what_a_url_must_not_have_is_encoded(server: HttpServer, name: str) -> None:
    server.objects[name] = Served(b"x")
    key = {"/a%20b.txt": "a b.txt", "/%C3%BC/100%25": "ü/100%"}.get(name, "a\r\nx: y")
    assert get(store(server.host), key) == b"x"
    assert get(store(server.host), name[1:]) == b"x"


@pytest.mark.parametrize(
    ("headers", "etag"),
    [
        ({"ETag": '"v1"', "Last-Modified": "yesterday"}, "v1"),
        ({"ETag": 'W/"v1"', "Last-Modified": "yesterday"}, "yesterday, 1 bytes"),
        ({"Last-Modified": "yesterday"}, "yesterday, 1 bytes"),
        ({"ETag": 'W/"v1"'}, ""),
        ({}, ""),
    ],
)
@pytest.mark.parametrize("head", [0, 403, 405, 501])
def test_an_object_has_a_name_for_its_content_if_the_server_gives_one(
    server: HttpServer, headers: dict[str, str], etag: str, head: int
) -> None:
    server.objects["/a"] = Served(b"x", headers, head=head)
    assert store(server.host).etag("a") == etag
    with store(server.host).open("a") as stored:
        assert stored.etag == etag


@pytest.mark.parametrize("head", [0, 405])
def test_an_object_that_is_not_there_has_no_name(server: HttpServer, head: int) -> None:
    server.objects["/a"] = Served(status=410, head=head)
    assert store(server.host).etag("a") is None
    assert store(server.host).etag("b") is None


def test_nothing_can_be_written(server: HttpServer) -> None:
    with pytest.raises(Denied, match="can only be read"):
        with store(server.host).create("a"):
            pass
    assert not server.seen


def test_connections_are_kept(server: HttpServer) -> None:
    server.objects["/a"] = Served(b"x" * 1_000_000, {"ETag": '"1"'})
    objects = store(server.host)
    for _ in range(3):
        assert len(get(objects, "a")) == 1_000_000
        objects.etag("a")
    assert server.connections == 1


# Content encodings: nobody asked for any


def test_what_is_sent_compressed_is_what_was_meant(server: HttpServer) -> None:
    data = os.urandom(100_000) * 20
    for coding in ("gzip", "x-gzip", "GZIP"):
        server.objects["/data.bin"] = Served(gzip.compress(data), {"Content-Encoding": coding, "ETag": '"1"'})
        assert get(store(server.host), "data.bin") == data


def test_an_archive_that_is_called_encoded_stays_an_archive(server: HttpServer) -> None:
    data = gzip.compress(b"tar")
    server.objects["/a.tar.gz?x"] = Served(data, {"Content-Encoding": "gzip"})
    assert get(store(server.host), "a.tar.gz?x") == data


def test_what_is_wrongly_called_compressed_is_not_asked_for_again_and_again(
    server: HttpServer, fetching: Fetching
) -> None:
    server.objects["/a"] = Served(b"plain text", {"Content-Encoding": "gzip"})
    with pytest.raises(ExperimentError, match="called compressed by its server, and is not"):
        fetching(f"http://{server.host}/a")
    assert server.seen == ["GET /a"]


def test_a_compressed_stream_that_is_cut_does_not_look_whole(server: HttpServer) -> None:
    data = gzip.compress(os.urandom(300_000))
    headers = {"Content-Encoding": "gzip", "Content-Length": str(len(data))}
    server.objects["/a"] = Served(headers=headers, write=lambda out: out.write(data[:-50_000]))
    with pytest.raises(Unavailable, match="/a' broke off"):
        get(store(server.host), "a")


# Credentials


@pytest.mark.parametrize(("credentials", "header"), [(PLAIN, BASIC), (BearerToken("t0ken"), "Bearer t0ken")])
def test_credentials_open_what_wants_them(server: HttpServer, credentials: Credentials, header: str) -> None:
    server.objects["/a"] = Served(b"x", authorization=header)
    assert get(store(server.host, credentials), "a") == b"x"
    assert store(server.host, credentials).etag("a") == ""
    for wrong in (None, BearerToken("hunter2"), BasicCredentials("me", "hunter2")):
        server.seen.clear()
        with pytest.raises(Denied, match=f"http://{server.host}/a may not be read.*401.*credentials") as raised:
            get(store(server.host, wrong), "a")
        assert "hunter2" not in str(raised.value)
        assert len(server.seen) == 1


def test_aws_credentials_are_for_other_urls(server: HttpServer) -> None:
    server.objects["/a"] = Served(b"x")
    with pytest.raises(Denied, match=r"plain or jwt.*s3://") as raised:
        store(server.host, AwsCredentials("AKID", "hunter2"))
    assert "hunter2" not in str(raised.value)
    assert get(store(server.host, AwsCredentials("", "")), "a") == b"x", "two empty strings are anonymous access"


def test_a_netrc_file_gives_no_credentials(server: HttpServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.objects["/a"] = Served(b"x")
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login somebody password else\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    get(store(server.host), "a")
    assert "authorization" not in server.headers[0]


# Redirections


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_credentials_go_to_the_urls_own_host_only(server: HttpServer, other: HttpServer, status: int) -> None:
    server.objects["/a"] = Served(status=status, headers={"Location": "/b?c"})
    server.objects["/b?c"] = Served(status=status, headers={"Location": f"http://{other.host}/d/e"})
    other.objects["/d/e"] = Served(status=status, headers={"Location": "../f"})
    other.objects["/f"] = Served(b"x", {"ETag": '"1"'})
    objects = store(server.host, PLAIN)
    assert get(objects, "a") == b"x"
    assert objects.etag("a") == "1"
    assert [headers["authorization"] for headers in server.headers] == [BASIC] * 4
    assert [headers["authorization"] for headers in other.headers] == [None] * 4
    assert all(method.startswith("GET") for method in other.seen[:2])


def test_credentials_do_not_go_to_another_port_or_scheme_of_the_same_host(server: HttpServer, tmp_path: Path) -> None:
    with serving(tls=self_signed(tmp_path)) as secure:
        server.objects["/a"] = Served(status=302, headers={"Location": f"https://{secure.host}/b"})
        secure.objects["/b"] = Served(b"x")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SSL_CERT_FILE", str(tmp_path / "tls.crt"))
            assert get(store(server.host, PLAIN), "a") == b"x"
        assert "authorization" not in secure.headers[0]


def test_tls_is_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(tls=self_signed(tmp_path)) as secure:
        secure.objects["/a"] = Served(b"x")
        with pytest.raises(MachineError, match=f"certificate of https://{secure.host} is not trusted: SSL_CERT_FILE"):
            get(store(secure.host, scheme="https"), "a")
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "tls.crt"))
        assert get(store(secure.host, scheme="https"), "a") == b"x"


def test_a_redirection_never_leaves_tls(server: HttpServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", self_signed(tmp_path)[0])
    with serving(tls=(str(tmp_path / "tls.crt"), str(tmp_path / "tls.key"))) as secure:
        secure.objects["/a?sig=hunter2"] = Served(
            status=302, headers={"Location": f"http://{server.host}/b?sig=hunter2"}
        )
        with pytest.raises(Denied, match=r"redirects to http://\S+/b\?…, which is not encrypted") as raised:
            get(store(secure.host, scheme="https"), "a?sig=hunter2")
    assert "hunter2" not in str(raised.value)
    assert not server.seen


@pytest.mark.parametrize(
    "target", ["file:///etc/passwd", "s3://host/b/k", "ftp://host/a", "//me:hunter2@host/", "http://[", "data:,x"]
)
def test_a_redirection_leads_to_plain_urls_only(server: HttpServer, target: str) -> None:
    server.objects["/a"] = Served(status=302, headers={"Location": target})
    with pytest.raises(Denied, match=r"redirects to something that is no plain http:// or https:// URL") as raised:
        get(store(server.host), "a")
    assert "hunter2" not in str(raised.value)
    assert len(server.seen) == 1


def test_redirections_have_an_end(server: HttpServer) -> None:
    for number in range(20):
        server.objects[f"/{number}"] = Served(status=302, headers={"Location": f"/{number - 1}"})
    server.objects["/0"] = Served(b"x")
    assert get(store(server.host), "10") == b"x"
    server.seen.clear()
    with pytest.raises(Denied, match="/11 redirects more than 10 times"):
        get(store(server.host), "11")
    assert len(server.seen) == 11


def test_a_redirection_into_nowhere_is_refused(server: HttpServer) -> None:
    server.objects["/a"] = Served(status=302)
    with pytest.raises(Denied, match="answered 302"):
        get(store(server.host), "a")


def test_a_name_beyond_ascii_is_followed(server: HttpServer) -> None:
    server.objects["/a"] = Served(status=302, headers={"Location": "/ü b".encode().decode("latin-1")})
    server.objects["/%C3%BC%20b"] = Served(b"x")
    assert get(store(server.host), "a") == b"x"


# Where a message must not reach


@pytest.mark.parametrize(
    "host",
    [
        "169.254.169.254",
        "[fe80::1]",
        "[fd00:ec2::254]",
        "[::ffff:169.254.170.2]",
        "[64:ff9b::a9fe:a9fe]",
        "0xA9FEA9FE",
        "2852039166",
        "169.254.1.",
    ],
)
@pytest.mark.parametrize("proxied", [False, True])
def test_credentials_of_the_machine_are_out_of_reach(
    server: HttpServer, monkeypatch: pytest.MonkeyPatch, host: str, proxied: bool
) -> None:
    if proxied:
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    server.objects["/a"] = Served(status=302, headers={"Location": f"http://{host}/latest/meta-data/"})
    with pytest.raises(Denied, match="find their own credentials"):
        get(store(host), "latest/meta-data/")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with pytest.raises(Denied, match="find their own credentials"):
        get(store(server.host), "a")


def test_a_name_of_such_an_address_is_refused_before_anything_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "_PRIVATE", [ip_network("127.0.0.0/8")])
    with serving() as server:
        port = server.host.rpartition(":")[2]
        for scheme in ("http", "https"):
            with pytest.raises(Denied, match=r"127\.0\.0\.1 is an address at which machines"):
                get(store(f"localhost:{port}", scheme=scheme), "a")
        assert not server.seen


def test_the_proxy_of_the_environment_may_be_anywhere(server: HttpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "_PRIVATE", [ip_network("127.0.0.0/8")])
    monkeypatch.setenv("http_proxy", f"http://{server.host}")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    server.objects["http://files.invalid/a?b"] = Served(b"x")
    assert get(store("files.invalid"), "a?b") == b"x"


def test_the_operator_may_allow_it(server: HttpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "_PRIVATE", [ip_network("127.0.0.0/8")])
    server.objects["/a"] = Served(b"x")
    with pytest.raises(Denied, match="--allow-link-local"):
        get(store(server.host), "a")
    assert get(connect(locate(f"http://{server.host}/"), None, replace(QUICK, link_local=True)), "a") == b"x"


def test_s3_endpoints_are_looked_at_too() -> None:
    objects = connect(locate("s3://169.254.169.254/latest/meta-data"), AwsCredentials("", ""), QUICK)
    for action in (lambda: get(objects, "meta-data"), lambda: objects.etag("meta-data")):
        with pytest.raises(Denied, match="find their own credentials"):
            action()


# Refusals and failures


@pytest.mark.parametrize(
    ("status", "error"),
    [
        *((status, NotFound) for status in (404, 410)),
        *((status, Denied) for status in (204, 206, 400, 401, 403, 418, 501)),
    ],
)
def test_a_refusal_is_told_and_not_tried_again(server: HttpServer, status: int, error: type[RunnerError]) -> None:
    server.objects["/a?sig=hunter2"] = Served(status=status)
    with pytest.raises(error, match=rf"http://{server.host}/a\?….*{status}") as raised:
        get(store(server.host), "a?sig=hunter2")
    assert "hunter2" not in str(raised.value)
    assert len(server.seen) == 1


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_an_overloaded_server_is_asked_again(server: HttpServer, proxy: FaultyProxy, status: int) -> None:
    server.objects["/a"] = Served(b"x")
    proxy.answer(status, times=2)
    assert get(store(proxy.host), "a") == b"x"
    proxy.answer(status, times=2)
    assert store(proxy.host).etag("a") == ""
    proxy.answer(status)
    with pytest.raises(Unavailable, match=str(status)):
        get(store(proxy.host, options=ONCE), "a")


def test_a_server_that_is_not_there_is_unavailable() -> None:
    with socket.socket() as taken:  # bound, but not listening: nobody else can take the port
        taken.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(Unavailable, match=f"http://{host} does not answer .*Connection refused") as raised:
            get(store(host, options=ONCE), "a?sig=hunter2")
    assert "hunter2" not in str(raised.value)


# Streams that break


def test_a_download_goes_on_where_it_broke(server: HttpServer, proxy: FaultyProxy) -> None:
    data = os.urandom(1_000_000)
    server.objects["/a"] = Served(data, {"ETag": '"1"'}, authorization=BASIC)
    proxy.cut(300_000, times=3)
    assert get(store(proxy.host, PLAIN), "a") == data
    assert [headers["range"] for headers in proxy.headers] == [
        None,
        "bytes=300000-999999",
        "bytes=600000-999999",
        "bytes=900000-999999",
    ]


def test_patience_is_not_for_a_whole_download_but_for_each_break(
    server: HttpServer, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranges, "PART", 100_000)
    data = os.urandom(1_000_000)
    server.objects["/a"] = Served(data, {"ETag": '"1"'})
    proxy.cut(300_000, times=3)
    got = bytearray()
    with store(proxy.host, options=StoreOptions(patience=Patience(total=0.05, first=0.01))).open("a") as stored:
        while part := stored.stream.read(250_000):
            got += part
            time.sleep(0.06)
    assert got == data


def test_a_download_that_goes_on_is_redirected_as_the_first_was(server: HttpServer, proxy: FaultyProxy) -> None:
    data = os.urandom(1_000_000)
    server.objects["/a"] = Served(status=302, headers={"Location": f"http://{proxy.host}/b"})
    server.objects["/b"] = Served(data, {"ETag": '"1"'})
    proxy.cut(300_000)
    assert get(store(server.host), "a") == data
    assert server.seen == ["GET /a", "GET /b", "GET /a", "GET /b"]


def test_a_download_does_not_go_on_with_another_object(server: HttpServer, proxy: FaultyProxy) -> None:
    server.objects["/a"] = Served(b"x" * 1_000_000, {"ETag": '"1"'})
    proxy.cut(300_000)
    with pytest.raises(Unavailable, match="may be another by now"):
        with store(proxy.host).open("a") as stored:
            stored.stream.read(1000)
            server.objects["/a"] = Served(b"y" * 1_000_000, {"ETag": '"2"'})
            stored.stream.read()
    assert len(proxy.seen) == 2, "there is no use in asking for that again"


@pytest.mark.parametrize("other", [{"ETag": '"2"'}, {"Content-Range": "bytes 300000-999999/2000000"}])
def test_a_server_that_ignores_conditions_does_not_mix_two_objects(
    server: HttpServer, proxy: FaultyProxy, other: dict[str, str]
) -> None:
    server.objects["/a"] = Served(b"x" * 1_000_000, {"ETag": '"1"'})
    proxy.cut(300_000)
    with store(proxy.host).open("a") as stored:
        assert stored.stream.read(1000) == b"x" * 1000
        said = {"ETag": '"1"', "Content-Range": "bytes 300000-999999/1000000", **other}
        proxy.answer(206, b"y" * 700_000, headers=said)
        with pytest.raises(Unavailable, match="may be another by now"):
            stored.stream.read()


@pytest.mark.parametrize("headers", [{}, {"ETag": 'W/"1"'}, {"ETag": '"1"'}])
def test_a_download_that_cannot_go_on_starts_anew(
    server: HttpServer, proxy: FaultyProxy, fetching: Fetching, headers: dict[str, str]
) -> None:
    data = os.urandom(1_000_000)
    server.objects["/a"] = Served(data, headers, ranges=False)
    proxy.cut(300_000)
    assert fetching(f"http://{proxy.host}/a") == {"a": data}


# Whole artifacts

Fetching = Callable[..., dict[str, bytes]]


@pytest.fixture
def fetching(tmp_path: Path) -> Fetching:
    """Fetch one artifact as an attempt does, and return its files."""

    def fetch(
        url: str, *, unpack: bool = False, budget: int | None = None, check: Callable[[], None] = lambda: None
    ) -> dict[str, bytes]:
        def sleep(seconds: float) -> None:
            check()
            time.sleep(seconds)

        artifact = Artifact("data", locate(url), mutable=False, unpack=unpack, hash="", credentials=None, qualified=url)
        with placed(tmp_path, "key", keep=False) as place:
            stores = Stores(QUICK, sleep=sleep)
            Artifacts([artifact], place, Budget(budget)).fetch(artifact, stores, check)
            return files(place)

    return fetch


def files(place: Place) -> dict[str, bytes]:
    directory = place.label("data")
    return {
        path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/a.txt?sig=x/y", "a.txt"),
        ("/d/a%20b%C3%BC.txt", "a bü.txt"),
        ("/a%2Fb", "b"),
        ("/d/", "d"),
        ("/..%2F..%2Fetc", "etc"),
    ],
)
def test_a_file_is_named_by_its_url(server: HttpServer, fetching: Fetching, path: str, name: str) -> None:
    server.objects[path] = Served(b"x")
    assert fetching(f"http://{server.host}{path}") == {name: b"x"}


@pytest.mark.parametrize("path", ["/", "/?sig=hunter2", "/a/..", "/%2E%2E", "/%00"])
def test_a_url_without_a_name_is_refused(server: HttpServer, fetching: Fetching, path: str) -> None:
    for name in (path, "/../", "/a/.."):
        server.objects[name] = Served(b"x")
    with pytest.raises(ExperimentError, match="'data' has a key without a file name: http://") as raised:
        fetching(f"http://{server.host}{path}")
    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize("headers", [{}, {"Content-Encoding": "gzip"}, {"Content-Encoding": "x-gzip", "ETag": '"1"'}])
def test_an_archive_is_unpacked_whatever_the_server_calls_it(
    server: HttpServer, fetching: Fetching, headers: dict[str, str]
) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        member = tarfile.TarInfo("file")
        member.size = 4
        tar.addfile(member, io.BytesIO(b"data"))
    for name in ("a.tgz", "a.tar.gz", "a.tar"):
        server.objects[f"/{name}?sig"] = Served(buffer.getvalue(), headers)
        assert fetching(f"http://{server.host}/{name}?sig", unpack=True) == {"file": b"data"}


def endlessly(out: BinaryIO) -> None:
    while True:
        out.write(b"10000\r\n" + bytes(65536) + b"\r\n")


def drip(out: BinaryIO) -> None:
    for _ in range(600):
        out.write(b"1\r\nx\r\n")
        time.sleep(0.05)


def test_a_stream_without_end_meets_the_budget(server: HttpServer, fetching: Fetching) -> None:
    server.objects["/a"] = Served(headers={"Transfer-Encoding": "chunked"}, write=endlessly)
    with pytest.raises(ExperimentError, match="artifact 'data'"):
        fetching(f"http://{server.host}/a", budget=10_000_000)


def test_a_bomb_meets_the_budget(server: HttpServer, fetching: Fetching) -> None:
    server.objects["/a"] = Served(gzip.compress(bytes(200_000_000)), {"Content-Encoding": "gzip"})
    with pytest.raises(ExperimentError, match="artifact 'data'"):
        fetching(f"http://{server.host}/a", budget=10_000_000)


def test_a_trickle_does_not_outlive_the_time_limit(
    server: HttpServer, fetching: Fetching, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scaled down: reads gather for 0.2 s, and a byte comes every 0.05 s."""
    monkeypatch.setattr(transport, "_GATHERING", 0.2)
    server.objects["/a"] = Served(headers={"Transfer-Encoding": "chunked"}, write=drip)
    assert stopped_after(lambda check: fetching(f"http://{server.host}/a", check=check)) < 15, "it goes on for 30 s"


def test_redirections_do_not_outlive_the_time_limit(server: HttpServer, fetching: Fetching) -> None:
    for number in range(11):
        server.objects[f"/{number}"] = Served(status=302, headers={"Location": f"/{number - 1}"})

    def check() -> None:
        if server.seen:
            raise ExperimentError("time is up")

    with pytest.raises(ExperimentError, match="time is up"):
        fetching(f"http://{server.host}/10", check=check)
    assert len(server.seen) == 1


def stopped_after(action: Callable[[Callable[[], None]], object]) -> float:
    """Do something under a limit of half a second; return how long it took to notice."""
    started = time.monotonic()

    def check() -> None:
        if time.monotonic() - started > 0.5:
            raise ExperimentError("time is up")

    with pytest.raises(ExperimentError, match="time is up"):
        action(check)
    return time.monotonic() - started
