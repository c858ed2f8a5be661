"""The built program, and a place to run it in."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.harness import Workplace

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Build studio-runner.pyz, unless RUNNER_TESTS_PROGRAM is one, and return how to start it."""
    if ready := os.environ.get("RUNNER_TESTS_PROGRAM"):
        return [sys.executable, str(ROOT / ready)]
    built = tmp_path_factory.mktemp("built") / "studio-runner.pyz"
    subprocess.run([sys.executable, ROOT / "build_zipapp.py", "--output", built], check=True, stdout=subprocess.DEVNULL)
    return [sys.executable, str(built)]


@pytest.fixture(scope="session")
def working(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory for all tests, so that they share built environments."""
    return tmp_path_factory.mktemp("working")


@pytest.fixture
def place(tmp_path: Path, working: Path, program: list[str]) -> Iterator[Workplace]:
    made = Workplace(tmp_path, working, program)
    yield made
    made.close()
