"""A real Apptainer for tests, an image made of Debian packages, and a registry that holds one."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import bcrypt
import pytest
import requests

from tests.servers.starting import free_ports, need, wait

# Where tools/install_apptainer.sh puts it.
INSTALLED = "/opt/apptainer/bin"

REGISTRY = """\
version: 0.1
storage: {{filesystem: {{rootdirectory: {root}}}}}
http: {{addr: "127.0.0.1:{port}"}}
auth: {{htpasswd: {{realm: tests, path: {root}/users}}}}
"""
TYPES = {
    "manifest": "application/vnd.oci.image.manifest.v1+json",
    "config": "application/vnd.oci.image.config.v1+json",
    "layer": "application/vnd.oci.image.layer.v1.tar+gzip",
}


@pytest.fixture(scope="session")
def apptainer() -> str:
    """The program's path; without it tests are skipped, also in CI: not every machine can install it."""
    found = shutil.which("apptainer", path=f"{os.environ['PATH']}:{INSTALLED}")
    if not found:
        pytest.skip("there is no Apptainer: run tools/install_apptainer.sh as root")
    return found


@pytest.fixture(scope="session")
def root_file_system(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Debian with Python, whose packages are only unpacked: that takes 5 s, and is enough to run programs."""
    need("mmdebstrap", install="tools/install.sh servers")
    root = tmp_path_factory.mktemp("image") / "root"
    packages = "--include=base-files,base-passwd,dash,coreutils,python3,python3-venv"
    release, mirror = _debian()
    argv = ["mmdebstrap", "--quiet", "--variant=extract", packages, release, root, mirror]
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)
    for name in ("dev", "usr/share/doc", "usr/share/locale", "usr/share/man"):
        shutil.rmtree(root / name)
    (root / "dev").mkdir()
    (root / "etc" / "passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (root / "etc" / "group").write_text("root:x:0:\n")
    (root / "usr/lib/python3/dist-packages/inside.py").write_text("where = 'in the image'\n")
    return root


def _debian() -> tuple[str, str]:
    """Return the name of this machine's release, and where apt gets it."""
    form = ["apt-get", "indextargets", "--format", "$(CODENAME) $(SITE)", "Created-By: Packages", "Component: main"]
    lines = subprocess.check_output(form, text=True).splitlines()
    release = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
    codename = release["VERSION_CODENAME"]
    return codename, next(line.split()[1] for line in lines if line.split()[0] == codename)


@pytest.fixture(scope="session")
def image(apptainer: str, root_file_system: Path) -> Path:
    """A SIF file of it, not compressed."""
    made = root_file_system.with_name("image.sif")
    packing = "-noI -noD -noF -noX"
    subprocess.run([apptainer, "--silent", "build", "--mksquashfs-args", packing, made, root_file_system], check=True)
    return made


# Of these directories an image needs no more to run a Python that makes no environments, and is converted sooner.
ENOUGH = re.compile(
    r"\./usr/bin/(python3|dash|sh|env).*|\./usr/lib/[^/]*-linux-gnu[^/]*(/(ld-|libc\.|libm\.|libz\.|libexpat\.).*)?"
    r"|(?!\./usr/bin/|\./usr/lib/[^/]*-linux-gnu|\./usr/share/|\./usr/sbin/)(?!.*/ensurepip).*"
)


class Registry:
    """A registry on loopback, at ``host``; ``login`` is needed for everything in it."""

    def __init__(self, host: str, login: tuple[str, str]) -> None:
        self.host, self.login = host, login
        self._session = requests.Session()
        self._session.auth = login

    def push(self, name: str, tag: str, root: Path, environment: list[str]) -> str:
        """Put a directory, or most of it, into it as an image of one layer; return the digest (OCI specifications)."""
        plain = io.BytesIO()
        with tarfile.open(fileobj=plain, mode="w") as tar:
            tar.add(root, arcname=".", filter=lambda each: each if ENOUGH.fullmatch(each.name) else None)
        digest = f"sha256:{hashlib.sha256(plain.getvalue()).hexdigest()}"
        machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)
        config = {"architecture": machine, "os": "linux", "config": {"Env": environment}}
        config |= {"rootfs": {"type": "layers", "diff_ids": [digest]}}
        layer = self._upload(name, gzip.compress(plain.getvalue(), compresslevel=1, mtime=0), TYPES["layer"])
        manifest = {"schemaVersion": 2, "mediaType": TYPES["manifest"], "layers": [layer]}
        manifest["config"] = self._upload(name, json.dumps(config).encode(), TYPES["config"])
        put = self._session.put(
            f"http://{self.host}/v2/{name}/manifests/{tag}",
            json.dumps(manifest),
            headers={"Content-Type": TYPES["manifest"]},
            timeout=30,
        )
        put.raise_for_status()
        return put.headers["Docker-Content-Digest"]

    def _upload(self, name: str, blob: bytes, kind: str) -> dict[str, object]:
        digest = f"sha256:{hashlib.sha256(blob).hexdigest()}"
        begun = self._session.post(f"http://{self.host}/v2/{name}/blobs/uploads/", timeout=30)
        begun.raise_for_status()
        self._session.put(begun.headers["Location"], blob, params={"digest": digest}, timeout=60).raise_for_status()
        return {"mediaType": kind, "digest": digest, "size": len(blob)}


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """A real registry (CNCF Distribution), which wants a login."""
    need("docker-registry", install="tools/install.sh servers")
    root, (port,) = tmp_path_factory.mktemp("registry"), free_ports(1)
    user, password = "lab", "registry-Secret-0123"
    hashed = bcrypt.hashpw(password.encode(), bcrypt.gensalt(4)).decode()
    (root / "users").write_text(f"{user}:{hashed}\n")
    (root / "config.yml").write_text(REGISTRY.format(root=root, port=port))
    argv = ["docker-registry", "serve", str(root / "config.yml")]
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as running:
        try:
            wait(lambda: _answers(f"http://127.0.0.1:{port}/v2/"), seconds=20)
            yield Registry(f"127.0.0.1:{port}", (user, password))
        finally:
            running.terminate()


def _answers(url: str) -> bool:
    try:
        return requests.get(url, timeout=5).status_code == 401
    except requests.ConnectionError:
        return False
