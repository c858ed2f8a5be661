"""What a user submits, and what a user is told who submits it wrongly."""

from __future__ import annotations

import json
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest

from runner.attempt.record import Record
from runner.commands.follow import follow
from runner.commands.submit import main
from runner.crypto.sealing import open_sealed, read_private_key
from runner.crypto.signing import read_verifier
from runner.errors import ConfigError, RequestError, Unavailable
from runner.message import envelope, request
from runner.retry import Patience
from runner.storage.base import StoreOptions
from runner.storage.stores import Stores

KEYS = Path(__file__).resolve().parent / "vectors" / "keys"
PUBLIC, SIGNING = str(KEYS / "studioml_request.pub.pem"), str(KEYS / "studioml_signing")


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A workspace, a queue root and a store, and the options that name them."""
    (tmp_path / "code" / "pkg").mkdir(parents=True)
    (tmp_path / "code" / "train.py").write_text("print()")
    (tmp_path / "queues").mkdir()
    for name in ("QUEUE_ROOT", "AMQP_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return ["--queue-root", "queues", "--queue", "local_q", "--store", f"file://{tmp_path}/store"]


def published(root: Path) -> request.Request:
    (path,) = (root / "queues" / "local_q").iterdir()
    return request.parse(path.read_bytes())


def test_a_message_as_clients_write_it_is_published(
    there: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data.bin").write_bytes(b"data")
    options = ["--key", "k", "--project", "p", "--cpus", "2", "--ram", "3gb", "--max-duration", "2h", "--env", "A=b=c"]
    more = [
        "--requirement",
        "six>=1,<2",
        "--requirement",
        "toml",
        "--artifact",
        "extra=data.bin",
        "--pythonver",
        "3.11",
    ]
    assert (
        main(
            [
                *there,
                *options,
                *more,
                "--pythonver",
                "3.11",
                "code",
                "train.py",
                "--epochs",
                "two words",
                "$HOME",
                "--wait",
            ]
        )
        == 0
    )
    assert capsys.readouterr().out == "submitted k to local_q\n"
    wanted = published(tmp_path)
    assert wanted.args == ("--epochs", "two words", "$HOME", "--wait")
    assert (wanted.key, wanted.project, wanted.pythonver, wanted.max_duration) == ("k", "p", "3.11", 7200)
    assert (wanted.resources.cpus, wanted.resources.ram) == (2, 3_000_000_000)
    assert wanted.pythonenv == ("six>=1,<2", "toml")
    assert wanted.env == {"A": "b=c"}
    assert not wanted.artifacts["workspace"].mutable
    assert wanted.artifacts["modeldir"].mutable
    for label, names in {"workspace": ["pkg", "train.py"], "extra": ["data.bin"]}.items():
        location = wanted.artifacts[label].location
        with tarfile.open(Path(location.bucket) / location.key) as stored:
            assert stored.getnames() == names


def test_the_record_is_there_before_the_message_and_has_no_secrets(there: list[str], tmp_path: Path) -> None:
    main([*there, "--env", "API_TOKEN=s3cret", "code", "train.py"])
    wanted = published(tmp_path)
    stores = Stores(StoreOptions(file_roots=(str(tmp_path),), patience=Patience(1)), sleep=lambda _: None)
    assert wanted.record
    record = Record(wanted.record, stores).read()
    assert record["status"] == "waiting"
    assert "s3cret" not in json.dumps(record)


def test_a_message_can_be_encrypted_and_signed(there: list[str], tmp_path: Path) -> None:
    main([*there, "--encrypt", PUBLIC, "--sign", SIGNING, "--env", "API_TOKEN=s3cret", "code", "train.py"])
    (path,) = (tmp_path / "queues" / "local_q").iterdir()
    assert b"s3cret" not in path.read_bytes()
    sealed = envelope.read(json.loads(path.read_bytes()))
    read_verifier(Path(f"{SIGNING}.pub").read_text()).verify(sealed.payload, sealed.signature)
    key = read_private_key((KEYS / "studioml_request.pem").read_bytes(), b"PassPhrase")
    assert request.parse(open_sealed(sealed.payload, key)).env == {"API_TOKEN": "s3cret"}


def test_the_same_workspace_is_stored_once(there: list[str], tmp_path: Path) -> None:
    main([*there, "code", "train.py"])
    main([*there, "code", "train.py"])
    assert len(list((tmp_path / "store" / "blobstore").iterdir())) == 1


def test_virtual_environments_stay_where_they_are(there: list[str], tmp_path: Path) -> None:
    for file in (".venv/pyvenv.cfg", ".venv/lib/x.py", ".venv-notes", "pkg/env/pyvenv.cfg", "pkg/train.py"):
        (tmp_path / "code" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "code" / file).touch()
    (tmp_path / "code/.venv/python").symlink_to("/usr/bin/python3")
    main([*there, "code", "train.py"])
    (archive,) = (tmp_path / "store" / "blobstore").iterdir()
    with tarfile.open(archive) as packed:
        assert packed.getnames() == [".venv-notes", "pkg", "pkg/train.py", "train.py"]


def test_links_that_lead_nowhere_for_a_runner_are_left_out_and_told(
    there: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "code" / "data").symlink_to("/mnt/data")
    (tmp_path / "code" / "latest").symlink_to(tmp_path / "code" / "train.py")
    main([*there, "code", "train.py"])
    location = published(tmp_path).artifacts["workspace"].location
    with tarfile.open(Path(location.bucket) / location.key) as stored:
        assert {member.name: member.linkname for member in stored if member.issym()} == {"latest": "train.py"}
    assert f"{tmp_path}/code/data is a link out of what is submitted, to /mnt/data" in capsys.readouterr().err


def test_a_module_can_be_run(there: list[str], tmp_path: Path) -> None:
    main([*there, "code", "-m", "pkg.train", "-x"])
    assert published(tmp_path).args == ("pkg.train", "-x")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["code"], "name the workspace directory and the Python file"),
        (["code", "other.py"], "has no file 'other.py'"),
        (["--artifact", "data=missing", "code", "train.py"], "'missing' is neither a directory nor a file"),
        (["--store", "gs://bucket", "code", "train.py"], "--store"),
        (["--store", "nonsense", "code", "train.py"], "--store is 'nonsense'"),
        (["--store", "file:///proc/none", "code", "train.py"], "--store: /proc/none cannot be made: No such file"),
        (["--queue", "local_q_response", "code", "train.py"], "queues of that name carry reports"),
        (["--queue", "../local_q", "code", "train.py"], "cannot be the name of a directory"),
        (["--queue-root", "missing", "code", "train.py"], "--queue-root is 'missing', which is not a directory"),
        (["--env", "A", "code", "train.py"], "must be NAME=VALUE"),
        (["--amqp-url", "amqp://x", "code", "train.py"], "one place where the queue is"),
        (["--encrypt", PUBLIC, "code", "train.py"], "--encrypt and --sign belong together"),
        (["--sign", SIGNING, "code", "train.py"], "--encrypt and --sign belong together"),
        (["--encrypt", "none", "--sign", SIGNING, "code", "train.py"], "none cannot be read: No such file"),
        (["--encrypt", SIGNING, "--sign", SIGNING, "code", "train.py"], f"{SIGNING}: the public key cannot be read"),
        (["--encrypt", PUBLIC, "--sign", PUBLIC, "code", "train.py"], f"{PUBLIC}: the private key cannot be read"),
    ],
)
def test_a_mistake_is_told_in_one_sentence_and_nothing_is_published(
    there: list[str], tmp_path: Path, words: list[str], told: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        main([*there, *words])
    assert told in str(caught.value)
    assert not (tmp_path / "queues" / "local_q").exists()


def test_what_no_runner_could_run_is_refused_here(there: list[str], tmp_path: Path) -> None:
    with pytest.raises(RequestError) as caught:
        main([*there, "--ram", "much", "--requirement", "--index-url=x", "code", "train.py"])
    assert "experiment.resources_needed.ram" in str(caught.value)
    assert "experiment.pythonenv[0]" in str(caught.value)
    assert not (tmp_path / "queues" / "local_q").exists()


def test_waiting_ends_when_the_time_is_over(there: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Unavailable, match="is not over after"):
        main([*there, "--wait", "--timeout", "10ms", "code", "train.py"])
    assert "is waiting" in capsys.readouterr().out


def test_a_queue_that_runners_do_not_read_by_themselves_is_told(
    there: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*there, "code", "train.py"]) == 0
    assert "only runners with" not in capsys.readouterr().err
    assert main([*there, "--queue", "mine", "code", "train.py"]) == 0
    assert "only runners with --queue mine" in capsys.readouterr().err


class Client(Record):
    """A record whose store answers as the script has it: a sentence is an error, and None an interrupt."""

    def __init__(self, *script: dict[str, object] | str | None) -> None:
        self._script = list(script)

    def read(self) -> dict[str, Any]:
        said = self._script.pop(0)
        if said is None:
            raise KeyboardInterrupt
        if isinstance(said, str):
            raise Unavailable(said)
        return said


def test_waiting_goes_on_while_the_store_does_not_answer(
    there: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    running = {"status": "running"}
    over = {"status": "finished", "outcome": {"verdict": "ok", "sentence": "it is over"}}
    client = Client(running, "no route", "no route", {}, running, over)
    monkeypatch.setattr("runner.commands.follow.Record", lambda *_: client)
    monkeypatch.setattr("runner.commands.follow._POLL", 0)
    assert main([*there, "--key", "k", "--wait", "code", "train.py"]) == 0
    said = capsys.readouterr().out.splitlines()[1:]
    gone = "k is no longer known: its record is not in the store"
    assert said == ["k is running", "k is out of sight: no route", gone, "k is running", "it is over"]


def test_who_stops_waiting_is_told_that_the_experiment_goes_on(
    there: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("runner.commands.follow.Record", lambda *_: Client(None))
    with pytest.raises(KeyboardInterrupt):
        main([*there, "--key", "k", "--wait", "code", "train.py"])
    assert capsys.readouterr().err.endswith("not waiting any more: k goes on without us\n")


def test_who_can_write_to_the_store_writes_to_no_other_file_of_ours_nor_to_the_terminal(
    there: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*there, "--key", "k", "code", "train.py"]) == 0
    wanted = published(tmp_path)
    assert wanted.record
    stores = Stores(StoreOptions(file_roots=(str(tmp_path),), patience=Patience(0)), sleep=time.sleep)
    outcome = {"verdict": "ok", "sentence": "it \x1b[2J is over", "accession": "x/../../evil"}
    Record(wanted.record, stores).write({"status": "finished", "outcome": outcome})
    (tmp_path / "store" / "metadata").mkdir()
    (tmp_path / "store" / "evil.json").write_text("evil")
    assert follow(wanted, stores, directory=tmp_path / "results" / "k", timeout=60) == 0
    assert "\x1b" not in capsys.readouterr().out
    assert not list((tmp_path).glob("results/**/evil.json"))
