"""``studio-runner prepare``, as its users start it."""

from __future__ import annotations

import json
import os
import pwd
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from runner.crypto.sealing import read_public_key
from runner.crypto.signing import read_signer
from runner.message import envelope
from tests.e2e.harness import archive, put
from tests.test_building import BACKEND, PROJECT
from tests.test_running import works

ROOT = Path(__file__).resolve().parent.parent


def prepare(root: Path, message: dict[str, Any], *more: str) -> subprocess.CompletedProcess[str]:
    (root / "message.json").write_text(json.dumps(message))
    (root / "store").mkdir(exist_ok=True)
    uv = Path(sys.executable).parent / "uv"
    options = [
        "--working-dir",
        root,
        "--file-root",
        root / "store",
        "--uv",
        uv,
        "--encrypt-dir",
        root / "certs",
        *more,
        root / "message.json",
    ]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PIP_NO_INDEX": "1", "AMQP_URL": "amqp://unused"}
    argv = [sys.executable, "-m", "runner", "prepare", *options]
    return subprocess.run(argv, env=env, capture_output=True, text=True, check=False)


def message(root: Path, **experiment: object) -> dict[str, Any]:
    workspace = {"qualified": f"file://{root}/store/code.tar", "key": "code.tar", "mutable": False, "unpack": True}
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    given = {"key": "k", "filename": "x.py", "pythonver": version, "artifacts": {"workspace": workspace}}
    return {"experiment": {**given, **experiment}, "config": {}}


def test_an_environment_is_prepared_and_then_there_already(tmp_path: Path) -> None:
    put(tmp_path / "store" / "code.tar", archive({"x.py": b""}))
    first, second = prepare(tmp_path, message(tmp_path)), prepare(tmp_path, message(tmp_path))
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    assert "the environment of experiment 'k' is built in " in first.stdout
    assert "the environment of experiment 'k' is there already: Python 3." in second.stdout
    assert second.stdout.count("\n") == 1
    assert os.listdir(tmp_path / "studio-runner" / "experiments") == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can run programs as others")
def test_packages_are_built_by_the_user_that_experiments_run_as() -> None:
    if not works("/usr/bin/python3"):
        pytest.skip("no Python that another user could make environments with")
    asked = ["/usr/bin/python3", "-c", "import platform; print(platform.python_version())"]
    version = subprocess.check_output(asked, text=True).strip()
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        root.chmod(0o711)
        backend = BACKEND.replace("os.getcwd()", "str(os.getuid())")
        fig = {"fig/pyproject.toml": PROJECT.encode(), "fig/backend.py": backend.encode()}
        put(root / "store" / "code.tar", archive(fig))
        wanted = message(root, pythonver=version, pythonenv=["./fig"])
        done = prepare(root, wanted, "--run-as", "nobody", "--uv", "never", "--python-dirs", "/usr/bin")
        assert done.returncode == 0, done.stdout + done.stderr
        built = next((root / "studio-runner" / "environments").glob("*/venv/lib/*/site-packages/fig.pth"))
        assert built.read_text() == str(pwd.getpwnam("nobody").pw_uid)


def test_an_encrypted_message_is_opened_with_the_runners_keys(tmp_path: Path) -> None:
    put(tmp_path / "store" / "code.tar", archive({"x.py": b""}))
    keys = ROOT / "tests" / "vectors" / "keys"
    inside = message(tmp_path, status="waiting", time_added=1.0, resources_needed={})
    inside["config"]["experimentLifetime"] = None
    recipient = read_public_key((keys / "studioml_request.pub.pem").read_text())
    sealed = envelope.made(inside, recipient, read_signer((keys / "studioml_signing").read_bytes(), None))
    done = prepare(tmp_path, sealed)
    assert done.returncode == 1
    assert "there is no encryption/ssh-privatekey in" in done.stderr
    put(tmp_path / "certs" / "encryption" / "ssh-privatekey", (keys / "studioml_request.pem").read_bytes())
    put(tmp_path / "certs" / "passphrase" / "ssh-passphrase", b"PassPhrase\n")
    done = prepare(tmp_path, sealed)
    assert "the environment of experiment 'k' is built in " in done.stdout, done.stderr


def test_a_bad_message_is_told_with_all_its_faults(tmp_path: Path) -> None:
    done = prepare(tmp_path, message(tmp_path, filename="/x.py", pythonver="new", pythonenv=["--pre x"]))
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 3
    assert all(line.startswith("studio-runner: experiment.") for line in done.stderr.splitlines())


def test_a_python_that_is_missing_is_told_with_those_that_are_there(tmp_path: Path) -> None:
    done = prepare(tmp_path, message(tmp_path, pythonver="3.99"))
    assert done.returncode == 1
    assert re.search(
        r"this machine has no Python 3\.99 for the experiment \(it has .*3\.\d+\.\d+.*\): install it", done.stderr
    )
