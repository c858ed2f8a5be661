"""A real S3 server for tests: a single-node Ceph (monitor, one OSD in memory, radosgw) on loopback.

It checks what S3 checks: signatures, body hashes, digests, clock skew, the rules of multipart uploads.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from hashlib import sha256
from pathlib import Path

import pytest
import requests

from runner.storage.base import AwsCredentials
from runner.storage.sigv4 import Signer, encode
from tests.servers.certificates import self_signed
from tests.servers.starting import StartError, free_ports, need, wait

PROGRAMS = ("ceph-authtool", "monmaptool", "ceph-mon", "ceph", "ceph-osd", "radosgw", "radosgw-admin")
REGION = "us-west-1"

CONFIG = """\
[global]
fsid = {fsid}
mon host = [v1:127.0.0.1:{mon_port}]
mon initial members = a
public network = 127.0.0.0/8
public addr = 127.0.0.1
ms bind msgr2 = false
auth cluster required = none
auth service required = none
auth client required = none
keyring = {root}/keyring
run dir = {root}
admin socket = {root}/$name.asok
log file = {root}/$name.log
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 4
osd pool default pgp num = 4
osd crush chooseleaf type = 0
mon allow pool size one = true
mon warn on pool no redundancy = false
mon max pg per osd = 1000
osd pool default pg autoscale mode = off
[mon.a]
mon data = {root}/mon
mon data avail warn = 1
mon data avail crit = 0
[osd.0]
osd data = {root}/osd
osd objectstore = memstore
memstore device bytes = 12884901888
[client.rgw.test]
rgw frontends = beast endpoint=127.0.0.1:{s3_port} ssl_endpoint=127.0.0.1:{tls_port} {certificate} tcp_nodelay=1
rgw data = {root}/rgw
rgw enable usage log = false
rgw enable ops log = false
rgw gc obj min wait = 1
rgw gc processor period = 4
rgw gc processor max time = 3
"""


@dataclass(frozen=True)
class S3Server:
    """A running server. ``host`` is HOST:PORT, as in an ``s3://`` URL.

    ``tls_host`` is where it speaks TLS, with a certificate of the authority in the file ``ca``; "" if it does not.
    """

    host: str
    access_key: str = "studiomltestkey"
    secret_key: str = field(default="studiomltestsecret0123456789abcdef", repr=False)
    region: str = REGION
    tls_host: str = ""
    ca: str = ""

    @property
    def endpoint(self) -> str:
        return f"http://{self.host}"

    @property
    def credentials(self) -> AwsCredentials:
        return AwsCredentials(self.access_key, self.secret_key)

    def bucket(self) -> str:
        """Make a new bucket; returns its name."""
        name = f"test-{secrets.token_hex(6)}"
        self.call("PUT", name)
        return name

    def put(self, bucket: str, key: str, body: bytes = b"", *, acl: str = "private") -> None:
        """Store an object in the simplest way; ``acl`` may be ``public-read``."""
        self.call("PUT", f"{bucket}/{encode(key, '/')}", body=body, headers={"x-amz-acl": acl})

    def uploads(self, bucket: str) -> int:
        """Count the multipart uploads that were begun and neither completed nor aborted."""
        return self.call("GET", bucket, query="?uploads").text.count("<UploadId>")

    def call(
        self, method: str, path: str, *, query: str = "", body: bytes = b"", headers: dict[str, str] | None = None
    ) -> requests.Response:
        """Send one signed request and insist on a 2xx answer."""
        url = f"{self.endpoint}/{path}{query}"
        signer = Signer(self.credentials, self.region, "s3")
        now = datetime.now(timezone.utc)
        signed = signer.sign(method, url, headers=headers or {}, payload_hash=sha256(body).hexdigest(), now=now)
        response = requests.request(method, url, data=body, headers=signed, timeout=30)
        response.raise_for_status()
        return response


@pytest.fixture(scope="session")
def s3() -> Iterator[S3Server]:
    need(*PROGRAMS, install="apt-get install radosgw ceph-mon ceph-osd")
    with started() as server:
        yield server


@contextmanager
def started(tries: int = 3) -> Iterator[S3Server]:
    """Start the server, again with other ports if need be; stop it and remove its files in the end."""
    with ExitStack() as stack:
        for attempt in range(1, tries + 1):
            ceph = _Ceph(Path(stack.enter_context(_directory())))
            stack.callback(ceph.stop)
            try:
                server = ceph.start()
                break
            except (StartError, subprocess.SubprocessError):
                ceph.stop()
                if attempt == tries:
                    raise
        yield server


def _directory() -> AbstractContextManager[str]:
    return tempfile.TemporaryDirectory(prefix="ceph-", ignore_cleanup_errors=True)


class _Ceph:
    """The processes of one cluster and their directory."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.daemons: list[subprocess.Popen[bytes]] = []
        self.environment = {**os.environ, "CEPH_CONF": str(root / "ceph.conf")}

    def start(self) -> S3Server:
        mon_port, s3_port, tls_port = free_ports(3)
        certificate, key = self_signed(self.root)
        server = S3Server(f"127.0.0.1:{s3_port}", tls_host=f"127.0.0.1:{tls_port}", ca=str(certificate))
        fsid = str(uuid.uuid4())
        for name in ("mon", "osd", "rgw"):
            (self.root / name).mkdir()
        ports = {"mon_port": mon_port, "s3_port": s3_port, "tls_port": tls_port}
        files = f"ssl_certificate={certificate} ssl_private_key={key}"
        (self.root / "ceph.conf").write_text(CONFIG.format(root=self.root, fsid=fsid, certificate=files, **ports))
        self._start_monitor(f"[v1:127.0.0.1:{mon_port}]", fsid)
        self._start_osd()
        gateway = self._spawn("radosgw", "-f", "-n", "client.rgw.test")
        wait(lambda: self._answers(server, gateway), seconds=60)
        keys = (f"--access-key={server.access_key}", f"--secret-key={server.secret_key}")
        user = ("user", "create", "--uid=test", "--display-name=test", *keys)
        self._run("radosgw-admin", "-n", "client.rgw.test", "--admin-socket=", *user)
        return server

    def _start_monitor(self, address: str, fsid: str) -> None:
        keyring, monmap = str(self.root / "keyring"), str(self.root / "monmap")
        everything = ("--cap", "mon", "allow *", "--cap", "osd", "allow *", "--cap", "mgr", "allow *")
        self._run("ceph-authtool", "--create-keyring", keyring, "--gen-key", "-n", "mon.", "--cap", "mon", "allow *")
        self._run("ceph-authtool", keyring, "--gen-key", "-n", "client.admin", *everything)
        self._run("monmaptool", "--create", "--addv", "a", address, "--fsid", fsid, monmap)
        self._run("ceph-mon", "--mkfs", "-i", "a", "--monmap", monmap, "--keyring", keyring)
        self._spawn("ceph-mon", "-f", "-i", "a")

    def _start_osd(self) -> None:
        """Start the OSD until it stays: one start of six ends at once ("wrong fsid", a race with its first map)."""
        identity = str(uuid.uuid4())
        self._run("ceph", "osd", "new", identity)
        self._run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", identity)
        osd = self._spawn("ceph-osd", "-f", "-i", "0")

        def up() -> bool:
            nonlocal osd
            if osd.poll() is not None:
                osd = self._spawn("ceph-osd", "-f", "-i", "0")
            return b"1 up" in self._run("ceph", "osd", "stat")

        wait(up, seconds=60)

    def _answers(self, server: S3Server, gateway: subprocess.Popen[bytes]) -> bool:
        if gateway.poll() is not None:
            raise StartError(f"radosgw ended with status {gateway.returncode}")
        try:
            return requests.get(server.endpoint, timeout=5).ok
        except requests.RequestException:
            return False

    def _run(self, *command: str) -> bytes:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=60, env=self.environment, check=False
        )
        if done.returncode:
            raise StartError(f"{command[0]} ended with status {done.returncode}: {done.stderr[-500:]!r}")
        return done.stdout + done.stderr

    def _spawn(self, *command: str) -> subprocess.Popen[bytes]:
        """Start a daemon that the kernel kills when this process dies, however it dies."""
        bound = ("setpriv", "--pdeathsig", "KILL", *command) if shutil.which("setpriv") else command
        with (self.root / f"{command[0]}.out").open("ab") as output:
            daemon = subprocess.Popen(
                bound, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=self.environment
            )
        self.daemons.append(daemon)
        return daemon

    def stop(self) -> None:
        """Nothing in memory is worth an orderly end."""
        while self.daemons:
            daemon = self.daemons.pop()
            daemon.kill()
            daemon.wait()
