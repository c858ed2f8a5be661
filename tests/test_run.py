"""``studio-runner run`` and ``validate``, as their users start them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.harness import put, until
from tests.servers.hook import serving

ROOT = Path(__file__).resolve().parent.parent
VECTORS = ROOT / "tests" / "vectors"
VERSION = f"{sys.version_info[0]}.{sys.version_info[1]}"


@pytest.fixture(scope="module")
def working(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all tests here, so that an environment is built only once."""
    return tmp_path_factory.mktemp("working")


def environment(working: Path) -> dict[str, str]:
    return {
        **{"PATH": os.environ["PATH"], "HOME": str(working), "PYTHONPATH": str(ROOT), "PIP_NO_INDEX": "1"},
        **{
            "STUDIO_UV": str(Path(sys.executable).parent / "uv"),
            "WORKING_DIR": str(working),
            "STUDIO_PYTHONVER": VERSION,
        },
        "PYTHON_DIRS": str(Path(sys.base_prefix) / "bin"),
    }


def program(working: Path, *words: object, **options: Any) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "runner", *map(str, words)]
    given = {"capture_output": True, "text": True, "timeout": 120, "env": environment(working)}
    return subprocess.run(argv, check=False, **{**given, **options})


def script(root: Path, text: str) -> Path:
    put(root / "code" / "train.py", text.encode())
    return root / "code" / "train.py"


def test_a_script_runs_as_it_would_from_a_queue_and_shows_its_output(tmp_path: Path, working: Path) -> None:
    put(tmp_path / "code" / "neighbour.py", b"word = 'found'")
    text = "import sys, neighbour; print(neighbour.word, sys.argv[1:]); open('../modeldir/m', 'w').write('1')"
    path = script(tmp_path, f"import os; os.makedirs('../modeldir', exist_ok=True)\n{text}")
    done = program(working, "run", "--output", tmp_path / "out", path, "--epochs", "two words")
    assert done.returncode == 0, done.stderr
    assert "found ['--epochs', 'two words']" in done.stdout.splitlines()
    assert "'studioml'" not in done.stdout and '"studioml"' not in done.stdout, "what is for programs is not shown"
    assert (tmp_path / "out" / "modeldir" / "m").read_text() == "1"
    assert "found" in (tmp_path / "out" / "output" / "output").read_text()
    again = program(working, "run", "--file-root", tmp_path / "out", tmp_path / "out" / "message.json")
    assert again.returncode == 0 and "found" in again.stdout, "the message that was made of it is one like any other"


def test_a_failing_script_fails(tmp_path: Path, working: Path) -> None:
    done = program(working, "run", "--output", tmp_path / "out", script(tmp_path, "raise SystemExit(3)"))
    assert done.returncode == 1
    assert "failed: train.py ended with exit status 3" in done.stdout
    assert "not tried again" in done.stderr


def test_what_this_machine_cannot_run_is_not_the_scripts_failure(tmp_path: Path, working: Path) -> None:
    done = program(working, "run", "--pythonver", "3.5", "--output", tmp_path / "out", script(tmp_path, ""))
    assert done.returncode == 75
    assert "this machine has no Python 3.5 for the experiment" in done.stderr
    assert done.stderr.endswith("was not run to its end here: the lines above say why\n")


def test_what_is_over_before_it_begins_is_no_success(tmp_path: Path, working: Path) -> None:
    document = message(tmp_path, time_added=1e9)
    assert document["config"]["experimentLifetime"]
    done = program(working, "run", tmp_path / "message.json")
    assert done.returncode == 1
    assert "experiment 'demo' is past its lifetime" in done.stderr


def test_an_interrupted_script_is_stopped_and_what_it_has_is_kept(tmp_path: Path, working: Path) -> None:
    path = script(tmp_path, "import time; print('working', flush=True); time.sleep(600)")
    argv = [sys.executable, "-m", "runner", "run", "--output", str(tmp_path / "out"), str(path)]
    with (tmp_path / "shown").open("wb") as shown:
        process = subprocess.Popen(argv, env=environment(working), stdout=shown, stderr=subprocess.DEVNULL)
        try:
            until(lambda: "working" in (tmp_path / "shown").read_text(), "the script runs")
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 75
        finally:
            process.kill()
            process.wait()
    assert "working" in (tmp_path / "out" / "output" / "output").read_text()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "name a message or a Python file"),
        (["none.py"], "none.py is not there, or is no file"),
        (["none.json"], "none.json cannot be read: No such file or directory"),
        (["."], ". is a directory: name a message or a Python file in it"),
        (["message.json", "--epochs"], "'--epochs' is too much"),
        (["--output", "code/out", "code/train.py"], "is in the script's directory"),
        (["--cache-dir", "/tmp", "code/train.py"], "--cache-dir needs a --cache-size"),
    ],
)
def test_mistakes_are_told_in_a_sentence(tmp_path: Path, working: Path, words: list[str], told: str) -> None:
    script(tmp_path, "")
    (tmp_path / "message.json").write_text("{}")
    done = program(working, "run", *words, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert told in done.stderr
    assert len(done.stderr.splitlines()) == 1


def message(root: Path, **experiment: Any) -> dict[str, Any]:
    keys = {"aws": {"access_key": "AKIA-known", "secret_access_key": "hidden-Secret"}}
    workspace = {"qualified": "s3://s3.example:9000/bucket/code.tar", "key": "code.tar", "credentials": keys}
    given = {"key": "demo", "filename": "x.py", "args": ["--n", "'a b'"], "artifacts": {"workspace": workspace}}
    config = {"env": {"TOKEN": "hidden-Secret"}, "experimentLifetime": "2h", "saveWorkspaceFrequency": "5m"}
    document = {"experiment": {**given, **experiment}, "config": config}
    (root / "message.json").write_text(json.dumps(document))
    return document


def test_a_good_message_is_told_in_words_without_its_secrets(tmp_path: Path, working: Path) -> None:
    document = message(tmp_path, pythonenv=["numpy==2.0"], resources_needed={"ram": "2GiB", "cpus": 4})
    done = program(working, "validate", "-", input=json.dumps(document))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "experiment   'demo'",
        "runs         x.py --n 'a b' with Python 3",
        "installs     numpy==2.0",
        "wants        4 cpus, 2 GiB ram, any hdd",
        "ends         after 2h (experimentLifetime)",
        "checkpoints  every 5m",
        "variables    TOKEN",
        "artifact     workspace: read, unpacked, s3://s3.example:9000/bucket/code.tar",
    ]


def test_all_faults_of_a_message_are_told_at_once(tmp_path: Path, working: Path) -> None:
    message(tmp_path, filename="../x.py", pythonver="new", pythonenv=["--pre x"], resources_needed={"ram": "much"})
    for command in ("validate", "run"):
        done = program(working, command, tmp_path / "message.json")
        assert (done.returncode, done.stdout) == (1, "")
        assert len(done.stderr.splitlines()) == 4
        assert all(line.startswith("studio-runner: experiment.") for line in done.stderr.splitlines())


def test_an_encrypted_message_is_validated_with_the_keys_that_open_it(tmp_path: Path, working: Path) -> None:
    sealed = VECTORS / "enc_hello.json"
    for path, source in (
        ("encryption/ssh-privatekey", "studioml_request.pem"),
        ("passphrase/ssh-passphrase", "secret_phrase"),
    ):
        (tmp_path / path).parent.mkdir()
        shutil.copyfile(VECTORS / "keys" / source, tmp_path / path)
    done = program(working, "validate", "--encrypt-dir", tmp_path, sealed)
    assert done.returncode == 0, done.stderr
    assert "runs         " in done.stdout
    without = program(working, "validate", sealed, cwd=tmp_path)
    assert without.returncode == 1
    assert "an encrypted message cannot be opened" in without.stderr


def test_a_strangers_text_does_nothing_to_the_terminal(tmp_path: Path, working: Path) -> None:
    message(tmp_path, args=["\x1b[31m"], key="\x9b2J")
    done = program(working, "validate", tmp_path / "message.json")
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout and "\x9b" not in done.stdout


def test_slack_is_told_and_neither_log_nor_experiment_knows_its_hook(tmp_path: Path, working: Path) -> None:
    path = script(tmp_path, "import os; print(sorted(os.environ.items()))")
    with serving() as hook:
        env = {**environment(working), "SLACK_HOOK": hook.url, "LOGXI": "*=DBG"}
        done = program(working, "run", "--output", tmp_path / "out", path, env=env)
        assert done.returncode == 0, done.stderr
        assert ["started" in line or "completed (ok; " in line for line in hook.lines] == [True, True]
    assert "Secret" not in done.stdout + done.stderr
