"""OpenStack Swift with its S3 API for tests, on loopback: a second opinion of what S3 is."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import requests

from tests.servers.ceph import S3Server
from tests.servers.starting import StartError, free_ports, need, wait

RINGS = ("account", "container", "object")
PROGRAMS = ("swift-proxy-server", "swift-ring-builder", "memcached", *(f"swift-{ring}-server" for ring in RINGS))
REGION = "us-east-1"

COMMON = """\
[swift-hash]
swift_hash_path_suffix = test
swift_hash_path_prefix = test
[storage-policy:0]
name = default
default = yes
"""
STORAGE = """\
[DEFAULT]
swift_dir = {root}
devices = {root}
mount_check = false
disable_fallocate = true
bind_ip = 127.0.0.1
bind_port = {port}
workers = 0
user = {user}
[pipeline:main]
pipeline = {ring}-server
[app:{ring}-server]
use = egg:swift#{ring}
"""
PROXY = """\
[DEFAULT]
swift_dir = {root}
bind_ip = 127.0.0.1
bind_port = {port}
workers = 0
user = {user}
[pipeline:main]
pipeline = catch_errors cache listing_formats bulk s3api tempauth slo dlo proxy-server
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
allow_account_management = true
[filter:tempauth]
use = egg:swift#tempauth
user_test_tester = {secret} .admin
[filter:s3api]
use = egg:swift#s3api
location = {region}
s3_acl = no
check_bucket_owner = no
auth_pipeline_check = no
[filter:cache]
use = egg:swift#memcache
memcache_servers = 127.0.0.1:{cache}
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:listing_formats]
use = egg:swift#listing_formats
[filter:bulk]
use = egg:swift#bulk
[filter:slo]
use = egg:swift#slo
[filter:dlo]
use = egg:swift#dlo
"""


@contextmanager
def started() -> Iterator[S3Server]:
    """Run one until the context ends."""
    with ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="swift-", ignore_cleanup_errors=True)))
        (root / "disk").mkdir()
        (root / "swift.conf").write_text(COMMON)
        cache, front, *ports = free_ports(5)
        server = S3Server(f"127.0.0.1:{front}", "test:tester", region=REGION)
        user = os.environ.get("USER", "root")
        memcached = ["memcached", "-l", "127.0.0.1", "-p", str(cache), "-u", user]
        stack.callback(_end, _start(root, *memcached))
        for ring, port in zip(RINGS, ports, strict=True):
            _make_ring(root, ring, port)
            (root / f"{ring}.conf").write_text(STORAGE.format(root=root, port=port, user=user, ring=ring))
            stack.callback(_end, _start(root, f"swift-{ring}-server", str(root / f"{ring}.conf")))
        settings = {"root": root, "port": front, "cache": cache, "user": user}
        (root / "proxy.conf").write_text(PROXY.format(**settings, secret=server.secret_key, region=REGION))
        proxy = _start(root, "swift-proxy-server", str(root / "proxy.conf"))
        stack.callback(_end, proxy)
        wait(lambda: _serves(root, server, proxy), seconds=60)
        yield server


def _make_ring(root: Path, ring: str, port: int) -> None:
    for words in (["create", "4", "1", "1"], ["add", f"r1z1-127.0.0.1:{port}/disk", "1"], ["rebalance"]):
        builder = ["swift-ring-builder", f"{ring}.builder", *words]
        subprocess.run(builder, cwd=root, capture_output=True, check=False, timeout=60)  # 1 is a warning
    if not (root / f"{ring}.ring.gz").exists():
        raise StartError(f"swift-ring-builder has made no ring for {ring}")


def _start(root: Path, *command: str) -> subprocess.Popen[bytes]:
    with (root / "log").open("ab") as log:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def _serves(root: Path, server: S3Server, proxy: subprocess.Popen[bytes]) -> bool:
    if proxy.poll() is not None:
        raise StartError(f"swift ended: {(root / 'log').read_text(errors='replace')[-1000:]}")
    try:
        server.bucket()
    except requests.RequestException:
        return False
    return True


@pytest.fixture(scope="session")
def swift() -> Iterator[S3Server]:
    need(*PROGRAMS, install="apt-get install swift-proxy swift-account swift-container swift-object memcached")
    with started() as server:
        yield server
