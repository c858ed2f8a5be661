"""The built file: the same bytes from the same sources, all that it needs, and a start on every Python."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from email.parser import BytesHeaderParser
from pathlib import Path
from typing import Any

import pytest

from runner.bootstrap import INSIDE

ROOT = Path(__file__).resolve().parent.parent


def build(output: Path, root: Path = ROOT, *, sbom: Path, **more: Any) -> Path:
    command = [sys.executable, root / "build_zipapp.py", "--output", output, "--sbom", sbom]
    done = subprocess.run(command, check=False, capture_output=True, text=True, **more)
    assert done.returncode == 0, done.stdout + done.stderr
    return output


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("built") / "studio-runner.pyz"
    return build(output, sbom=output.with_name("sbom.json"))


def pythons() -> list[str]:
    """The Pythons that the file is for, as far as they are here."""
    versions = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    found = [str(path) for minor in range(10, 14) for path in sorted(versions.glob(f"3.{minor}.*/bin/python3.{minor}"))]
    return found or [sys.executable]


def test_two_builds_are_the_same_bytes(built: Path, tmp_path: Path) -> None:
    """Another directory, another user's habits, another day."""
    copy = tmp_path / "elsewhere"
    for name in ("runner", "requirements", "tools"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "build_zipapp.py", copy)
    for path in copy.rglob("*"):
        os.utime(path, (1e9, 1e9))
    env = {
        **os.environ,
        "LC_ALL": "tr_TR.UTF-8",
        "TZ": "Pacific/Kiritimati",
        "PYTHONHASHSEED": "7",
        "SOURCE_DATE_EPOCH": "1",
    }
    other = build(tmp_path / "other.pyz", copy, sbom=tmp_path / "sbom.json", env=env, umask=0o077)
    assert other.read_bytes() == built.read_bytes()
    assert (tmp_path / "sbom.json").read_bytes() == built.with_name("sbom.json").read_bytes()


PACKAGES = {
    *("runner", "requests", "urllib3", "certifi", "idna", "charset_normalizer", "pika"),
    *("botocore", "jmespath", "dateutil", "six.py", "typing_extensions.py", "pynvml.py", "prometheus_client", "native"),
}
# The numbers of the ELF format.
MACHINES = {"x86_64": 62, "aarch64": 183}


def contents(built: Path) -> dict[str, bytes]:
    """What is unpacked at the first start, by its path."""
    with zipfile.ZipFile(built) as file:
        names = [name for name in file.namelist() if name.startswith(INSIDE)]
        return {name.removeprefix(INSIDE): file.read(name) for name in names}


def test_it_holds_the_runner_and_its_dependencies_and_nothing_else(built: Path) -> None:
    files = contents(built)
    assert {name.partition("/")[0] for name in files if ".dist-info" not in name} == PACKAGES
    for machine in MACHINES:
        inside = {name.split("/")[2] for name in files if name.startswith(f"native/{machine}/")}
        backends = {f"_cffi_backend.cpython-3{minor}-{machine}-linux-gnu.so" for minor in range(10, 14)}
        packages = {name for name in inside if not name.endswith(".dist-info")}
        assert packages == {"cryptography", "nacl", "bcrypt", *backends}
    assert {name.split("/")[1] for name in files if name.startswith("native/")} == set(MACHINES)
    assert not [name for name in files if name.endswith((".pyc", "/RECORD"))]


def test_what_is_compiled_is_for_the_machine_whose_directory_it_is_in(built: Path) -> None:
    libraries = {name: data for name, data in contents(built).items() if ".so" in name or data.startswith(b"\x7fELF")}
    assert len(libraries) == 2 * 7
    for name, data in libraries.items():
        assert data[:5] == b"\x7fELF\x02", f"{name} is no 64-bit ELF file"
        assert int.from_bytes(data[18:20], "little") == MACHINES[name.split("/")[1]], name


def test_it_is_small_and_stays_small_when_it_is_unpacked(built: Path) -> None:
    assert built.stat().st_size < 12_500_000
    assert sum(map(len, contents(built).values())) < 40_000_000


def test_every_package_has_its_licence(built: Path) -> None:
    files = contents(built)
    infos = {name.rpartition(".dist-info/")[0] for name in files if ".dist-info/" in name}
    assert len(infos) == 13 + 2 * 4
    assert b"Redistributions in binary form must reproduce" in files["pynvml.py"], "its licence is in the file itself"
    for info in sorted(name for name in infos if not name.startswith("nvidia_ml_py")):
        assert any(name.startswith(f"{info}.dist-info/") and re.search("LICEN[CS]E|NOTICE", name) for name in files), (
            info
        )


def test_its_bill_of_materials_names_every_package_and_its_hash(built: Path) -> None:
    bill = json.loads(built.with_name("sbom.json").read_text())
    sha256 = hashlib.sha256(built.read_bytes()).hexdigest()
    assert bill["metadata"]["component"]["hashes"] == [{"alg": "SHA-256", "content": sha256}]
    parsed = [BytesHeaderParser().parsebytes(data) for name, data in contents(built).items() if "METADATA" in name]
    inside = {(each["Name"].lower().replace("_", "-"), each["Version"]) for each in parsed}
    assert {(each["name"], each["version"]) for each in bill["components"]} == inside
    locked = (ROOT / "requirements" / "runtime.txt").read_text()
    for each in bill["components"]:
        assert f"sha256:{each['hashes'][0]['content']}" in locked
    files = [each["purl"] for each in bill["components"] if each["name"] == "cffi"]
    assert len(files) == len(set(files)) == 4 * 2


@pytest.mark.parametrize("python", pythons())
def test_it_starts_on_a_machine_that_has_only_python(built: Path, tmp_path: Path, python: str) -> None:
    env = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "STUDIO_RUNNER_ROOT": str(tmp_path / "root")}
    command = [python, "-I", str(built)]
    said = subprocess.run([*command, "--version"], env=env, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert said.stdout.startswith("studio-runner ")
    told = subprocess.run([*command, "--bad"], env=env, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (told.returncode, told.stdout) == (2, "")
    assert told.stderr.splitlines() == [
        "studio-runner: --bad is no option of this program: see --help",
        "studio-runner: there are no queues: give --amqp-url, --sqs-certs, --sqs-region or --queue-root",
    ]


SEALING = """
import sys
from pathlib import Path
from runner.crypto.sealing import Sealer, open_sealed, read_private_key, read_public_key
keys = Path(sys.argv[1])
public = read_public_key((keys / "studioml_request.pub.pem").read_text())
for name in ("studioml_request.pem", "studioml_request"):
    private = read_private_key((keys / name).read_bytes(), b"PassPhrase")
    assert open_sealed(Sealer(public).seal(b"secret"), private) == b"secret"
import _cffi_backend, bcrypt, cryptography, nacl
for module in (_cffi_backend, bcrypt, cryptography, nacl):
    assert module.__file__.startswith(sys.argv[2]), module.__file__
"""
QUEUES = """
import botocore.session
session = botocore.session.get_session()
for service in ("sqs", "sts", "sso", "sso-oidc", "signin"):
    client = session.create_client(service, "eu-central-1", aws_access_key_id="key", aws_secret_access_key="secret")
    assert client.meta.endpoint_url.endswith("amazonaws.com"), client.meta.endpoint_url
"""


METRICS = """
from runner.monitoring.exposition import render
from runner.monitoring.status import Snapshot, Status
text = render(Snapshot(Status(version="1", host="h", process=1, time=2.0, started=1.0, idle=""), ())).decode()
assert "runner_ready 1.0" in text and "process_resident_memory_bytes" in text, text
from pathlib import Path
import runner
assert (Path(runner.__file__).parent / "monitoring" / "status.html").is_file()
"""


@pytest.mark.parametrize("code", [SEALING, QUEUES, METRICS], ids=["sealing", "queues", "metrics"])
@pytest.mark.parametrize("python", pythons())
def test_what_it_carries_works(built: Path, tmp_path: Path, python: str, code: str) -> None:
    (tmp_path / "code.py").write_text(code)
    env = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "STUDIO_RUNNER_ROOT": str(tmp_path / "root")}
    subprocess.run([python, built, "--version"], env=env, stdout=subprocess.DEVNULL, check=True)
    (unpacked,) = (path for path in (tmp_path / "root").iterdir() if path.is_dir())
    command = [python, "-W", "error", tmp_path / "code.py", ROOT / "tests" / "vectors" / "keys", unpacked]
    env = {**env, "PYTHONPATH": str(unpacked)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_machine_of_another_kind_is_told_what_to_install(built: Path, tmp_path: Path) -> None:
    if not shutil.which("setarch"):
        pytest.skip("no setarch to change the machine's name with")
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "STUDIO_RUNNER_ROOT": str(tmp_path / "root")}
    options = ["--queue-root", str(tmp_path), "--private-key", str(built), "local_queue"]
    # Without site-packages: what the file lacks may be there.
    command = ["setarch", "linux32", sys.executable, "-I", "-S", built, "listen", *options]
    told = subprocess.run(command, env=env, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (told.returncode, told.stdout) == (2, "")
    assert re.search("cannot load cryptography, PyNaCl and bcrypt, .*: install them for this Python", told.stderr)
    assert len(told.stderr.splitlines()) == 1


def test_where_no_programs_may_be_it_says_what_to_do(built: Path, tmp_path: Path) -> None:
    if subprocess.run(["unshare", "-m", "true"], check=False, capture_output=True).returncode:
        pytest.skip("only root can change what is mounted")
    env = {"PATH": os.environ["PATH"], "STUDIO_RUNNER_ROOT": str(tmp_path)}
    start = [sys.executable, "-I", "-S", built, "listen", "--queue-root", "/", "--private-key", str(built), "local_q"]
    mount = f'mount -t tmpfs -o noexec none {tmp_path} && exec "$@"'
    command = ["unshare", "-m", "sh", "-c", mount, "sh", *start]
    told = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert (told.returncode, told.stdout) == (2, "")
    assert re.search("is mounted noexec, set STUDIO_RUNNER_ROOT to a directory that is not", told.stderr)
    assert len(told.stderr.splitlines()) == 1
