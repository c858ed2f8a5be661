"""What may run in containers, and how: references, registries, what apptainer is told."""

from __future__ import annotations

import base64
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from runner.errors import MachineError, RequestError
from runner.machine import procfs
from runner.message.request import Request, from_document
from runner.options.settings import Settings
from runner.sandbox import references, registry
from runner.sandbox.containers import Container
from runner.sandbox.images import Images
from runner.storage.base import BasicCredentials, StoreOptions
from runner.storage.stores import Stores
from runner.supervisor import intake
from tests.servers.http import Served, serving
from tests.test_sandbox import job

ANONYMOUS = {"aws": {"access_key": "", "secret_access_key": ""}}


def wanting(qualified: str, **members: Any) -> Request:
    artifacts = {"_singularity": {"qualified": qualified, "credentials": ANONYMOUS, **members}}
    return from_document({"experiment": {"key": "k", "filename": "x.py", "pythonver": "3.99", "artifacts": artifacts}})


@pytest.mark.parametrize(
    ("image", "allowed"),
    [
        ("docker://python:3.11", "docker://python:3.11"),
        ("docker://python:3.11", "docker://python*"),
        ("docker://python:3.11", "*"),
        ("dockerhub://lab/x:1", "docker://lab/*"),
        ("docker://lab/x:1", "dockerhub://lab/x:1"),
        ("s3://Minio:9000/images/a.sif", "s3://minio:9000/images/*"),
        ("file:///images/a.sif", "file:///images/a.sif"),
        ("https://host/a.sif?version=1", "https://host/a.sif*"),
    ],
)
def test_what_is_allowed(image: str, allowed: str) -> None:
    references.check(wanting(image).artifacts["_singularity"], ["shub://x/y", allowed])


@pytest.mark.parametrize(
    ("image", "allowed"),
    [
        ("docker://python:3.11", "docker://python"),
        ("docker://python", "docker://python:3.11"),
        ("docker://evil/x", "library://evil/x"),
        ("docker://labs/x", "docker://lab/*"),
        ("file:///images/../etc/a.sif", "file:///images/*"),
        ("https://host/images/%2e%2E/a.sif", "https://host/images/*"),
        ("https://host/a.sif?file=b", "https://host/a.sif"),
        ("s3://minio:9000/images/a.sif", "s3://minio:9000/images/"),
    ],
)
def test_what_is_not_allowed(image: str, allowed: str) -> None:
    with pytest.raises(MachineError, match="--singularity-allow"):
        references.check(wanting(image).artifacts["_singularity"], [allowed])


def test_a_python_that_prints_when_it_starts_is_one_all_the_same(tmp_path: Path) -> None:
    made = job(tmp_path)
    made = dataclasses.replace(made, run=lambda argv, _env, cwd: subprocess.run(argv, cwd=cwd, check=False).returncode)
    (made.place.scratch / "tmp").mkdir(parents=True)
    (tmp_path / "python3").write_text(f"#!/bin/sh\necho hello\nprintf '{{}}'\nexec {sys.executable} \"$@\"\n")
    image, program = tmp_path / "image.sif", tmp_path / "program"
    program.write_text(f'#!/bin/sh\nuntil [ "$1" = {image} ]; do shift; done\nshift\nPATH={tmp_path} exec "$@"\n')
    for path in (tmp_path / "python3", program):
        path.chmod(0o755)
    (found,) = Images(made, str(program), Stores(StoreOptions(), sleep=time.sleep))._pythons(image)
    assert (found["path"], found["venv"]) == (f"{tmp_path}/python3", True)


def test_the_key_counts_where_it_is_another_than_the_urls() -> None:
    image = wanting("s3://minio:9000/images/a.sif", bucket="others", key="b.sif").artifacts["_singularity"]
    with pytest.raises(MachineError):
        references.check(image, ["s3://minio:9000/images/*"])
    references.check(image, ["s3://minio:9000/others/b.sif"])


@pytest.mark.parametrize(
    "image",
    [
        "docker://-x",
        "docker://a b",
        "docker://--help",
        "shub://a\tb",
        "library://",
        "docker:///x",
        "docker://a/../b",
        "docker://$(id)",
        "dockerhub://x\n",
    ],
)
def test_nothing_in_a_reference_can_become_an_option(image: str) -> None:
    with pytest.raises(RequestError, match="_singularity"):
        wanting(image)


def test_a_container_takes_no_python_of_the_host_but_a_program_that_runs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(singularity_allow=("docker://python",))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MachineError, match="neither apptainer nor singularity in PATH: install Apptainer"):
        intake.interpreter(wanting("docker://python"), settings)
    (tmp_path / "singularity").symlink_to("/bin/true")
    assert intake.interpreter(wanting("docker://python"), settings) is None


def container(tmp_path: Path, program: str, **options: Any) -> Container:
    def run(argv: Any, env: Any, cwd: Path) -> int:
        return subprocess.run(argv, env=env, cwd=cwd, check=False).returncode

    made = dataclasses.replace(job(tmp_path), run=run)
    return Container(made, program, Path("/image.sif"), python=sys.executable, **options)


def test_what_apptainer_is_told(tmp_path: Path) -> None:
    argv, env = container(tmp_path, "/x/apptainer", gpus=True).command(
        ["/python", "a b"], {"SECRET": "s3cret"}, tmp_path
    )
    place = tmp_path / "experiments/name-1"
    assert argv[:6] == ["/x/apptainer", "--silent", "exec", "--containall", "--pid", "--pwd"]
    assert "--nv" in argv
    assert mounts(argv) == [
        f'type=bind,"source={path}","destination={path}"'
        for path in (place, *(place / "_runner" / name for name in ("", "home", "launch", "container")))
    ]
    assert argv[argv.index("/image.sif") + 1] == sys.executable
    assert argv[-2:] == ["/python", "a b"]
    assert "s3cret" not in str((argv, env))
    assert not {"SECRET", "LD_LIBRARY_PATH"} & set(env)
    assert "--nv" not in container(tmp_path, "/x/apptainer").command(["/python"], {}, tmp_path)[0]


def mounts(argv: list[str]) -> list[str]:
    return [argv[at + 1] for at, word in enumerate(argv) if word == "--mount"]


def test_a_link_that_an_installer_left_in_a_labels_place_opens_nothing_of_the_host(tmp_path: Path) -> None:
    place = tmp_path / "experiments/name-1"
    (place / "workspace").mkdir(parents=True)
    (tmp_path / "of-the-host").mkdir()
    made = container(tmp_path, "/x/apptainer")
    argv, _ = made.command(["/python"], {}, tmp_path)
    assert f'type=bind,"source={place}/workspace","destination={place}/workspace"' in mounts(argv), "it stays in place"
    for link in (place / "results", place / "_runner" / "tmp"):
        link.symlink_to(tmp_path / "of-the-host")
    made.confine()
    argv, _ = made.command(["/python"], {}, tmp_path)
    assert not [mount for mount in mounts(argv) if "/results" in mount or "_runner/tmp" in mount]
    assert f'type=bind,"source={place}/_runner","destination={place}/_runner",ro' in mounts(argv)


def test_a_container_that_never_was_is_not_the_programs_failure(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="cannot start a container any more"):
        container(tmp_path, "/bin/false").run(["/bin/true"], {}, Path("/"))


# Stands for apptainer where its options do not matter: runs what comes after the image.
FAKE = """#!/bin/sh
while [ "$1" != /image.sif ]; do shift; done
shift
exec "$@"
"""


def test_the_launcher_sets_the_variables_and_tells_how_the_program_ended(tmp_path: Path) -> None:
    program = tmp_path / "fake"
    program.write_text(FAKE)
    program.chmod(0o755)
    inside = container(tmp_path, str(program))
    odd = {"A.b": "c\nd", "EMPTY": "", "PATH": os.environ["PATH"]}
    code = "import json, os, sys; json.dump(dict(os.environ), open(sys.argv[1], 'w'))"
    assert inside.run([sys.executable, "-S", "-E", "-c", code, str(tmp_path / "seen")], odd, Path("/")) == 0
    assert {
        name: value for name, value in json.loads((tmp_path / "seen").read_text()).items() if name != "LC_CTYPE"
    } == odd
    for code, status in (("raise SystemExit(130)", 130), ("import os; os.kill(os.getpid(), 11)", -11)):
        assert inside.run([sys.executable, "-c", code], {}, Path("/")) == status
    assert inside.run(["/no/such/program"], {}, Path("/")) == 127


def test_the_launcher_ends_when_the_attempt_is_dead(tmp_path: Path) -> None:
    program = tmp_path / "fake"
    program.write_text(FAKE)
    program.chmod(0o755)
    forever = [sys.executable, "-c", "import time; print(1, flush=True); time.sleep(600)"]
    argv, env = container(tmp_path, str(program)).command(forever, {}, Path("/"))
    with subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, start_new_session=True) as launched:
        assert launched.stdout is not None
        assert launched.stdout.readline() == b"1\n"
        (child,) = procfs.descendants(launched.pid)
        launched.stdout.close()
        assert launched.wait(10) == 137
    os.kill(child, signal.SIGKILL)  # which the end of the container does in other cases


# A registry that wants a token, which another path of it gives

DIGEST = f"sha256:{'a' * 64}"
MANIFEST = "/v2/lab/x/manifests/1"


def test_a_name_is_pinned_with_a_token_for_whoever_has_a_login(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    login = base64.b64encode(b"me:hunter2").decode()
    with serving() as server:
        image = f"docker://{server.host}/lab/x:1"
        challenge = f'Bearer realm="http://{server.host}/token",service="here",scope="repository:lab/x:pull"'
        told = Served(b"", {"Docker-Content-Digest": DIGEST}, authorization="Bearer t0ken", challenge=challenge)
        token = Served(b'{"token": "t0ken"}', authorization=f"Basic {login}")
        server.objects |= {MANIFEST: told, "/token?service=here&scope=repository%3Alab%2Fx%3Apull": token}
        pinned = f"docker://{server.host}/lab/x@{DIGEST}"
        assert registry.pinned(image, BasicCredentials("me", "hunter2"), plain=True) == pinned
        monkeypatch.setenv("HOME", str(tmp_path))
        assert registry.pinned(image, None, plain=True) == ""
        (tmp_path / ".docker").mkdir()
        (tmp_path / ".docker" / "config.json").write_text(json.dumps({"auths": {server.host: {"auth": login}}}))
        assert registry.pinned(image, None, plain=True) == pinned
        assert registry.pinned(pinned.replace("@", ":1@"), None, plain=True) == pinned
        told.challenge = challenge.replace(server.host, "127.0.0.1:9")
        assert registry.pinned(image, None, plain=True) == "", "the login goes nowhere else without TLS"
