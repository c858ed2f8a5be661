"""The boundary to the shell: what is said on which stream, and exit statuses, whatever the streams are."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from runner.cli import main


def program(words: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Have a shell run the program with these words, as a user does whose variables are no others."""
    given = {"PATH": os.environ["PATH"], "HOME": "/nowhere", **env}
    argv = ["bash", "-c", f'set -o pipefail; "$0" -m runner {words}', sys.executable]
    return subprocess.run(argv, env=given, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("words", ["--help", "--version", "submit --help"])
def test_output_that_cannot_be_written_is_told_in_a_sentence(words: str) -> None:
    done = program(f"{words} >/dev/full")
    told = "studio-runner: what it says cannot be written: No space left on device\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", told)


@pytest.mark.parametrize("words", ["--help", "--version"])
def test_who_reads_no_more_is_left_alone(words: str) -> None:
    done = program(f"{words} | (exec <&-; sleep 0.5)")
    assert (done.returncode, done.stderr) == (141, "")


def test_a_terminal_of_few_characters_gets_escapes_for_others() -> None:
    done = program("--help", PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert r"--env-allow NAME,\u2026" in done.stdout


def test_a_file_that_the_system_refuses_is_told_in_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "train.py").touch()
    (tmp_path / "store").mkdir()
    (tmp_path / "queues").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "none"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))
    words = ["submit", "--queue-root", str(tmp_path / "queues"), "--queue", "local_q"]
    assert main([*words, "--store", f"file://{tmp_path}/store", str(tmp_path / "code"), "train.py"]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"studio-runner: {tmp_path}/none/") and said.endswith(": No such file or directory\n")
