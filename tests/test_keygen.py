"""``studio-runner keys``: what it makes is what runners, experimenters and ssh-keygen take for keys."""

from __future__ import annotations

import json
import shlex
import subprocess
from base64 import b64encode
from pathlib import Path
from shutil import which

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from runner.commands.keygen import main
from runner.crypto import sealing, signing
from runner.crypto.key_files import content
from runner.crypto.keys import KeyDirectory
from runner.crypto.private_keys import PrivateKeys
from runner.errors import ConfigError
from runner.message import envelope
from runner.message.envelope import Envelopes

REQUEST = {
    "experiment": {"status": "waiting", "pythonver": "3", "time_added": 1.0, "resources_needed": {}},
    "config": {"experimentLifetime": None},
}
CERTS, CLIENTS = Path("certs"), Path("client-keys")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory of its own, and shorter keys: those of 4096 bits take seconds to make."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CERTS_DIR", raising=False)
    monkeypatch.setattr(sealing, "new_private_key", lambda: rsa.generate_private_key(65537, 2048))


def sent(queue: str) -> envelope.Envelope:
    """What an experimenter sends with the keys that were made."""
    own = CLIENTS / queue
    recipient = sealing.read_public_key((own / "runner_key.pem").read_text())
    signer = signing.read_signer((own / "signing_key").read_bytes(), None)
    return envelope.read(envelope.made(REQUEST, recipient, signer))


def opened(sealed: envelope.Envelope, queue: str) -> object:
    signers = KeyDirectory(CERTS / "queues" / "signing", clock=lambda: 0.0)
    return json.loads(Envelopes(signers, PrivateKeys(CERTS / "message", clock=lambda: 0.0)).open(sealed, queue))


def test_runner_and_experimenters_understand_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rmq_team", "sqs_"]) == 0
    told = capsys.readouterr().out
    assert opened(sent("rmq_team"), "rmq_team_7") == REQUEST
    assert opened(sent("sqs_"), "sqs_x") == REQUEST
    for queue in ("rmq_team", "sqs_"):
        reader = sealing.read_public_key((CERTS / "queues" / "response-encrypt" / queue).read_text())
        key = sealing.read_private_key((CLIENTS / queue / "report_key.pem").read_bytes(), None)
        assert sealing.open_sealed(sealing.Sealer(reader).seal(b"report"), key) == b"report"
        assert signing.read_signer(content(str(CLIENTS / queue / "signing_key")), None).fingerprint in told


def test_the_files_have_the_forms_that_clients_read_and_nobody_else_reads_them() -> None:
    main(["rmq_"])
    first_lines = {
        CERTS / "message/encryption/ssh-privatekey": "-----BEGIN RSA PRIVATE KEY-----",
        CERTS / "message/encryption/ssh-publickey": "-----BEGIN RSA PUBLIC KEY-----",
        CERTS / "queues/response-encrypt/rmq_": "-----BEGIN RSA PUBLIC KEY-----",
        CLIENTS / "rmq_/runner_key.pem": "-----BEGIN RSA PUBLIC KEY-----",
        CLIENTS / "rmq_/report_key.pem": "-----BEGIN RSA PRIVATE KEY-----",
        CLIENTS / "rmq_/signing_key": "-----BEGIN OPENSSH PRIVATE KEY-----",
    }
    for path, line in first_lines.items():
        assert path.read_text().splitlines()[0] == line
    assert "Proc-Type: 4,ENCRYPTED" in (CERTS / "message/encryption/ssh-privatekey").read_text()
    assert (CERTS / "queues/signing/rmq_").read_text() == (CLIENTS / "rmq_/signing_key.pub").read_text()
    assert (CERTS / "queues/signing/rmq_").read_text().startswith("ssh-ed25519 AAAA")
    files = [path for path in Path.cwd().rglob("*") if path.is_file()]
    assert len(files) == 9
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}


def test_keys_that_are_there_are_kept_and_those_of_others_too(capsys: pytest.CaptureFixture[str]) -> None:
    main(["rmq_"])
    before = {path: path.read_bytes() for path in Path.cwd().rglob("*") if path.is_file()}
    (CERTS / "queues/signing/sqs_").write_text("somebody's")
    main(["rmq_", "sqs_"])
    assert {path: path.read_bytes() for path in before} == before
    assert (CERTS / "queues/signing/sqs_").read_text() == "somebody's"
    assert not (CLIENTS / "sqs_/signing_key").exists()
    assert (
        "certs/queues/signing/sqs_ is there, and its private key is not in client-keys/sqs_" in capsys.readouterr().out
    )


def test_after_a_rotation_old_messages_open_and_everybody_has_the_new_key() -> None:
    main(["rmq_", "sqs_"])
    old = sent("sqs_")
    main(["--rotate", "rmq_"])
    new = sent("sqs_")
    assert opened(old, "sqs_x") == opened(new, "sqs_x") == REQUEST
    (former,) = (CERTS / "message/encryption").glob("ssh-privatekey-*")
    former.unlink()
    with pytest.raises(Exception, match="another key"):
        opened(old, "sqs_x")
    assert opened(new, "sqs_x") == REQUEST


def secrets_of(told: str) -> list[list[str]]:
    return [shlex.split(line.partition(" | ")[0]) for line in told.splitlines() if line.startswith("kubectl")]


def test_secrets_have_the_names_of_existing_deployments(capsys: pytest.CaptureFixture[str]) -> None:
    main(["rmq_"])
    made = secrets_of(capsys.readouterr().out)
    names = [
        "studioml-runner-key-secret",
        "studioml-runner-passphrase-secret",
        "studioml-signing",
        "studioml-report-keys",
    ]
    assert [words[4] for words in made] == names


@pytest.mark.skipif(not which("kubectl"), reason="there is no kubectl")
def test_kubectl_makes_secrets_of_the_lines(capsys: pytest.CaptureFixture[str]) -> None:
    main(["rmq_"])
    items = {}
    for words in secrets_of(capsys.readouterr().out):
        done = subprocess.run([*words[:-1], "json"], capture_output=True, text=True, check=True)
        secret = json.loads(done.stdout)
        items[secret["metadata"]["name"]] = secret["data"]
    assert set(items["studioml-runner-key-secret"]) == {"ssh-privatekey", "ssh-publickey"}
    assert set(items["studioml-runner-passphrase-secret"]) == {"ssh-passphrase"}
    assert set(items["studioml-signing"]) == set(items["studioml-report-keys"]) == {"info", "rmq_"}
    signer = (CERTS / "queues/signing/rmq_").read_bytes()
    assert items["studioml-signing"]["rmq_"] == b64encode(signer).decode()


@pytest.mark.parametrize("words", [[], ["../x"], ["info"], [".x"], ["a b"], [""]])
def test_what_is_no_name_of_a_queue_is_told(words: list[str]) -> None:
    with pytest.raises(ConfigError, match="name"):
        main(words)
    assert not CERTS.exists()


def test_a_place_that_cannot_be_written_is_told() -> None:
    CERTS.write_text("in the way")
    with pytest.raises(ConfigError, match=r"certs.* cannot be written"):
        main(["rmq_"])
