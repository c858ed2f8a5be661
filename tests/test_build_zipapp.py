"""The built file: the same bytes from the same sources, all that it needs, and a start on every Python."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def build(output: Path, root: Path = ROOT) -> Path:
    command = [sys.executable, root / "build_zipapp.py", "--output", output]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return output


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("built") / "studio-runner.pyz")


def pythons() -> list[str]:
    """The Pythons that the file is for, as far as they are here."""
    versions = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    found = [str(path) for minor in range(10, 14) for path in sorted(versions.glob(f"3.{minor}.*/bin/python3.{minor}"))]
    return found or [sys.executable]


def test_two_builds_are_the_same_bytes(built: Path, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere"
    for name in ("runner", "requirements"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "build_zipapp.py", copy)
    assert build(tmp_path / "other.pyz", copy).read_bytes() == built.read_bytes()


def test_it_holds_the_runner_and_its_dependencies_and_nothing_compiled(built: Path) -> None:
    with zipfile.ZipFile(built) as file:
        names = file.namelist()
    top = {name.split("/")[1] for name in names if name.startswith("site-packages/") and ".dist-info" not in name}
    assert top == {"runner", "requests", "urllib3", "certifi", "idna", "charset_normalizer", "pika"}
    assert not [name for name in names if name.endswith((".so", ".pyc"))]


@pytest.mark.parametrize("python", pythons())
def test_it_starts_on_a_machine_that_has_only_python(built: Path, tmp_path: Path, python: str) -> None:
    env = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "SHIV_ROOT": str(tmp_path / "shiv")}
    command = [python, "-I", str(built)]
    said = subprocess.run([*command, "--version"], env=env, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert said.stdout.startswith("studio-runner ")
    told = subprocess.run([*command, "--bad"], env=env, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (told.returncode, told.stdout) == (2, "")
    assert told.stderr == "studio-runner: --bad is no option of this program: see --help\n"
