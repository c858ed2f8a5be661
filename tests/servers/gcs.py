"""Google Cloud Storage for tests, twice: a small server of our own that keeps its rules, and a foreign emulator.

The emulator knows no credentials, and of what it reads neither versions nor the hashes of ranges; a gate before it adds
them.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import subprocess
import sys
import tempfile
import threading
from base64 import b64encode
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

import google_crc32c
import pytest
import requests

from tests.servers.google import GoogleHandler, Identities
from tests.servers.listening import listening
from tests.servers.starting import StartError, free_ports, wait

STEP = 256 * 1024


def md5_of(data: bytes) -> str:
    return b64encode(hashlib.md5(data).digest()).decode()


def crc32c_of(data: bytes) -> str:
    return b64encode(google_crc32c.Checksum(data).digest()).decode()


@dataclass(frozen=True)
class StoredObject:
    """One version. ``composite`` objects have no MD5; ``encoding`` is how they are stored."""

    data: bytes
    generation: int
    composite: bool = False
    encoding: str = ""

    @cached_property
    def hashes(self) -> dict[str, str]:
        own = {} if self.composite else {"md5Hash": md5_of(self.data)}
        return {"crc32c": crc32c_of(self.data), **own}

    @property
    def members(self) -> dict[str, str]:
        return {"generation": str(self.generation), "size": str(len(self.data)), **self.hashes}

    @property
    def headers(self) -> dict[str, str]:
        names = {"crc32c": "crc32c", "md5Hash": "md5"}
        hashes = ",".join(f"{names[name]}={value}" for name, value in self.hashes.items())
        encoding = {"x-goog-stored-content-encoding": self.encoding} if self.encoding else {}
        return {"x-goog-generation": str(self.generation), "x-goog-hash": hashes, **encoding}


@dataclass
class Session:
    """A resumable upload under way; ``stored`` when it has become an object."""

    bucket: str
    name: str
    data: bytearray = field(default_factory=bytearray)
    stored: StoredObject | None = None


@dataclass
class State:
    """All that the server has. ``keep``: of the next chunks that come, this many bytes are kept and the rest lost."""

    objects: dict[str, dict[str, StoredObject]] = field(default_factory=dict)
    public: set[str] = field(default_factory=set)
    sessions: dict[str, Session] = field(default_factory=dict)
    keep: list[int] = field(default_factory=list)
    generation: int = 1_700_000_000_000_000
    lock: threading.Lock = field(default_factory=threading.Lock)

    def store(self, bucket: str, name: str, data: bytes, **more: Any) -> StoredObject:
        with self.lock:
            self.generation += 1
            stored = StoredObject(data, self.generation, **more)
        self.objects[bucket][name] = stored
        return stored


class _Handler(GoogleHandler):
    """The rules of https://cloud.google.com/storage/docs/json_api, as far as the runner meets them."""

    state: State

    def objects(self, body: bytes, *, anonymous: bool) -> None:
        parts = urlsplit(self.path)
        self.query = {name: values[0] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
        found = re.fullmatch(r"(/upload)?/storage/v1/b/([^/]+)/o(?:/([^/]+))?", parts.path)
        if not found:
            self.fail(404, "notFound", "Not Found")
            return
        bucket, key = unquote(found[2]), unquote(found[3] or "")
        if anonymous and (found[1] or bucket not in self.state.public):
            self.fail(401, "required", "Anonymous caller does not have access to the Google Cloud Storage object.")
        elif bucket not in self.state.objects:
            self.fail(404, "notFound", "The specified bucket does not exist.")
        elif found[1]:
            self._upload(bucket, body)
        else:
            self._object(bucket, key)

    def _object(self, bucket: str, key: str) -> None:
        stored = self.state.objects[bucket].get(key)
        wanted = self.query.get("generation")
        if stored is None or (wanted and wanted != str(stored.generation)):
            self.fail(404, "notFound", f"No such object: {bucket}/{key}")
        elif self.query.get("alt") != "media":
            fields = self.query.get("fields", "generation,size,md5Hash,crc32c").split(",")
            self.reply(200, {name: value for name, value in stored.members.items() if name in fields})
        else:
            self._media(stored)

    def _media(self, stored: StoredObject) -> None:
        size = len(stored.data)
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if not found or stored.encoding == "gzip":  # which is decompressed on its way, and has no ranges then
            self.reply(200, stored.data, stored.headers)
        elif int(found[1]) >= size:
            self.fail(416, "requestedRangeNotSatisfiable", "Request range not satisfiable")
        else:
            start, end = int(found[1]), min(int(found[2]) + 1, size)
            span = {"Content-Range": f"bytes {start}-{end - 1}/{size}"}
            self.reply(206, stored.data[start:end], {**stored.headers, **span})

    def _upload(self, bucket: str, body: bytes) -> None:
        name = self.query.get("upload_id")
        if name is not None:
            self._session(name, body)
        elif self.query["uploadType"] == "media":
            self._store(bucket, self.query["name"], body)
        else:
            name = secrets.token_urlsafe(20)
            self.state.sessions[name] = Session(bucket, self.query["name"])
            self.reply(200, b"", {"Location": f"http://{self.headers['Host']}{self.path}&upload_id={name}"})

    def _store(self, bucket: str, name: str, data: bytes) -> StoredObject | None:
        expected = self.headers.get("x-goog-hash", "").removeprefix("md5=")
        if expected and expected != md5_of(data):
            message = f'Provided MD5 hash "{expected}" doesn\'t match calculated MD5 hash "{md5_of(data)}".'
            self.fail(400, "invalid", message)
            return None
        stored = self.state.store(bucket, name, data)
        self.reply(200, stored.members)
        return stored

    def _session(self, name: str, body: bytes) -> None:
        session = self.state.sessions.get(name)
        if session is None:
            self.fail(404, "notFound", "Not Found")
        elif self.command == "DELETE":
            del self.state.sessions[name]
            self.reply(499, b"")
        elif session.stored:
            self.reply(200, session.stored.members)
        else:
            self._chunk(session, body)

    def _chunk(self, session: Session, body: bytes) -> None:
        """Take a chunk, or none where it is only asked how much there is."""
        found = re.fullmatch(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)", self.headers["Content-Range"])
        assert found
        if found[1]:
            start, end = int(found[1]), int(found[2]) + 1
            if start != len(session.data) or end - start != len(body):
                self.fail(400, "invalid", "Invalid request. The number of bytes does not match the Content-Range")
                return
            if found[3] == "*" and len(body) % STEP:
                self.fail(400, "invalid", "Invalid request. There were bytes that are no multiple of 262144")
                return
            kept = self.state.keep.pop(0) if self.state.keep else len(body)
            session.data += body[:kept]
        if found[3] == str(len(session.data)):
            session.stored = self._store(session.bucket, session.name, bytes(session.data))
        else:
            held = {"Range": f"bytes=0-{len(session.data) - 1}"} if session.data else {}
            self.reply(308, b"", held)


class Gcs:
    """A server and its identities. ``host`` is HOST:PORT; its endpoint, token endpoint and metadata server are one."""

    kind = "fake"

    def __init__(self, host: str, state: State, identities: Identities) -> None:
        self.host, self.state, self.identities = host, state, identities
        self.endpoint = f"http://{host}"

    def bucket(self, *, public: bool = False) -> str:
        """Make a new bucket; return its name."""
        name = f"test-{secrets.token_hex(6)}"
        self.state.objects[name] = {}
        if public:
            self.state.public.add(name)
        return name

    def put(self, bucket: str, key: str, data: bytes, **more: Any) -> None:
        self.state.store(bucket, key, data, **more)

    def get(self, bucket: str, key: str) -> bytes:
        return self.state.objects[bucket][key].data

    def uploads(self, bucket: str) -> int:
        """Count the uploads that were begun and neither completed nor removed."""
        return sum(each.bucket == bucket and not each.stored for each in self.state.sessions.values())


class Emulator(Gcs):
    """The emulator behind its gate; of uploads that were left behind it says nothing."""

    kind = "emulator"

    def __init__(self, host: str, upstream: str, identities: Identities) -> None:
        super().__init__(host, State(), identities)
        self.upstream = f"http://{upstream}"

    def bucket(self, *, public: bool = False) -> str:
        name = f"test-{secrets.token_hex(6)}"
        assert not public
        requests.post(f"{self.upstream}/storage/v1/b", json={"name": name}, timeout=30).raise_for_status()
        return name

    def put(self, bucket: str, key: str, data: bytes, **more: Any) -> None:
        url = f"{self.upstream}/upload/storage/v1/b/{bucket}/o"
        requests.post(url, params={"uploadType": "media", "name": key}, data=data, timeout=30).raise_for_status()

    def get(self, bucket: str, key: str) -> bytes:
        url = f"{self.upstream}/storage/v1/b/{bucket}/o/{quote(key, safe='')}"
        response = requests.get(url, params={"alt": "media"}, timeout=30)
        response.raise_for_status()
        return response.content

    def uploads(self, bucket: str) -> int:
        return 0


class _Gate(GoogleHandler):
    """Lets those through who have a token, and says what the emulator leaves out: versions, and hashes of ranges."""

    upstream: str
    # The emulator ends when a body is empty, unless it is a part of one.
    empty = b"--x\r\ncontent-type: application/json\r\n\r\n{}\r\n--x\r\n\r\n\r\n--x--\r\n"

    def objects(self, body: bytes, *, anonymous: bool) -> None:
        if anonymous:
            self.fail(401, "required", "Anonymous caller does not have access to the Google Cloud Storage object.")
            return
        if "uploadType=media" in self.path and not body:
            self.headers["content-type"] = "multipart/related; boundary=x"
            self.path, body = self.path.replace("=media", "=multipart"), self.empty
        status, headers, data = self._ask(self.command, self.path, body)
        if status in (200, 206) and "alt=media" in self.path:
            members = requests.get(f"http://{self.upstream}{self.path.partition('?')[0]}", timeout=30).json()
            wanted = parse_qs(urlsplit(self.path).query).get("generation", [members["generation"]])
            if wanted != [members["generation"]]:
                self.fail(404, "notFound", "No such object")
                return
            hashes = f"crc32c={members['crc32c']},md5={members['md5Hash']}"
            headers |= {"x-goog-generation": members["generation"], "x-goog-hash": hashes}
        self.reply(status, data, headers)

    def _ask(self, method: str, target: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        with closing(HTTPConnection(self.upstream, timeout=60)) as connection:
            kept = {"content-range", "range", "content-type", "x-goog-hash"}
            sent = {name: value for name, value in self.headers.items() if name.lower() in kept}
            connection.request(method, target, body, sent)
            response = connection.getresponse()
            own = ("Range", "Content-Range", "Location", "X-Goog-Hash")
            return response.status, {n: v for n in own if (v := response.getheader(n))}, response.read()


@contextmanager
def started() -> Iterator[Gcs]:
    """Run a server of our own."""

    class Handler(_Handler):
        state = State()
        identities = Identities()

    with listening(Handler) as host:
        yield Gcs(host, Handler.state, Handler.identities)


@pytest.fixture(scope="session")
def gcs_server() -> Iterator[Gcs]:
    with started() as server:
        yield server


@pytest.fixture
def gcs(gcs_server: Gcs) -> Gcs:
    """A server of our own, its whims forgotten."""
    identities = gcs_server.identities
    identities.lifetime, identities.behind, identities.machine, identities.metadata_asked = 3600, 0, True, 0
    gcs_server.state.keep.clear()
    return gcs_server


@pytest.fixture(scope="session")
def gcs_emulator() -> Iterator[Emulator]:
    port = free_ports(1)[0]

    class Gate(_Gate):
        identities = Identities()
        upstream = f"127.0.0.1:{port}"

    with tempfile.TemporaryDirectory(prefix="gcs-") as root, listening(Gate) as host:
        program = Path(sys.executable).parent / "gcp-storage-emulator"
        command = [str(program), "start", "--host", "127.0.0.1", "--port", str(port), "--in-memory", "--quiet"]
        with (Path(root) / "log").open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, cwd=root)
        try:
            wait(lambda: _answers(process, Gate.upstream, Path(root) / "log"), seconds=60)
            yield Emulator(host, Gate.upstream, Gate.identities)
        finally:
            process.kill()
            process.wait()


def _answers(process: subprocess.Popen[bytes], host: str, log: Path) -> bool:
    if process.poll() is not None:
        raise StartError(f"the emulator ended: {log.read_text(errors='replace')[-1000:]}")
    with suppress(requests.RequestException):
        return requests.get(f"http://{host}/", timeout=5).ok
    return False
