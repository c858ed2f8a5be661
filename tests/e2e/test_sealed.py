"""Encrypted and signed messages on their whole way: keys, submit, a runner that takes no others, and forgers."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from runner.crypto.sealing import open_sealed, read_private_key, read_public_key
from runner.crypto.signing import read_signer
from runner.message import envelope
from tests.e2e.harness import Runner, Workplace, until

KEYS = Path(__file__).resolve().parent.parent / "vectors" / "keys"


def start(place: Workplace, certs: Path, *options: str) -> Runner:
    return place.start("--clear-text-messages=false", "--certs-dir", str(certs), *options)


def dead(place: Workplace) -> Path:
    """Have the queue keep what is refused."""
    directory = place.queues / "local_test" / ".dead"
    directory.mkdir()
    return directory


def client_keys(certs: Path) -> None:
    """Lay out the real client's keys as a cluster has them; its queues are for it, and no other."""
    for name, to in {
        "studioml_request.pem": "message/encryption/ssh-privatekey",
        "secret_phrase": "message/passphrase/ssh-passphrase",
        "studioml_signing.pub": "queues/signing/local_te",
    }.items():
        (certs / to).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(KEYS / name, certs / to)


def test_a_submitted_message_is_sealed_run_once_and_nobodys_copy_runs_again(place: Workplace) -> None:
    certs, clients, graves = place.root / "certs", place.root / "clients", dead(place)
    options = ["--certs-dir", str(certs), "--client-dir", str(clients), "local_te"]
    subprocess.run([*place.program, "keys", *options], check=True, env=place.env, stdout=subprocess.DEVNULL)
    (place.root / "code").mkdir()
    (place.root / "code" / "train.py").write_text("import os; print('ran with', os.environ['TOKEN'])\n")
    words = [
        *("--queue", "local_test", "--queue-root", str(place.queues), "--store", f"file://{place.store}"),
        *("--encrypt", str(clients / "local_te" / "runner_key.pem"), "--env", "TOKEN=s3cret", "--key", "sealed"),
        *("--sign", str(clients / "local_te" / "signing_key"), "--lifetime", "1h", "code", "train.py"),
    ]
    done = place.submit(*words)
    assert done.returncode == 0, done.stderr
    (name,) = place.waiting
    message = (place.queues / "local_test" / name).read_bytes()
    assert b"s3cret" not in message
    assert b"train.py" not in message
    runner = start(place, certs)
    assert "completed" in runner.saw("acknowledged")
    assert "ran with ***\n" in place.output("sealed")

    shutil.rmtree(place.store / "experiments")  # even without what tells that it is over
    place.publish(message, "copy")
    assert "local_test: a message is refused: the signed message of experiment 'sealed' is a copy" in runner.saw("copy")
    assert runner.stop() == 0
    runner = start(place, certs)
    place.publish(message, "after a restart")
    runner.saw("is a copy")
    assert sorted(path.name for path in graves.iterdir()) == ["after a restart", "copy"]
    assert not (place.store / "experiments").exists()
    assert "s3cret" not in runner.log


def sealed(place: Workplace, key: str, time_added: float | None = None) -> dict[str, Any]:
    """Make what the real client would send; without a time it is one of long ago, which is opened and not run."""
    request = place.message("print('ran')", key=key, time_added=time_added or 1.0, status="waiting")
    request["config"]["experimentLifetime"] = "1h"
    recipient = read_public_key((KEYS / "studioml_request.pub.pem").read_text())
    return envelope.made(request, recipient, read_signer((KEYS / "studioml_signing").read_bytes(), None))


def test_only_what_the_owner_of_the_queues_key_has_signed_is_run(place: Workplace) -> None:
    certs, graves, told = place.root / "certs", dead(place), place.queues / "local_test_response"
    client_keys(certs)
    told.mkdir()
    (certs / "queues" / "response-encrypt").mkdir()
    shutil.copy(KEYS / "studioml_request.pub.pem", certs / "queues" / "response-encrypt" / "local_te")
    message = sealed(place, "forged", time.time())["message"]
    runner = start(place, certs)
    place.publish(place.message("print()", key="clear"), "1 clear")
    forged = {"signature": message["signature"][::-1], "fingerprint": "SHA256:x", "payload": message["payload"][:-4]}
    for number, (member, value) in enumerate(forged.items(), 2):
        place.publish({"message": {**message, member: value}}, f"{number} {member}")
    place.settled()
    place.publish(sealed(place, "good", time.time()))
    assert "experiment 'good'" in runner.saw("completed")
    assert "ran\n" in place.output("good")
    assert runner.stop() == 0
    assert sorted(path.name for path in graves.iterdir()) == ["1 clear", "2 signature", "3 fingerprint", "4 payload"]
    assert not (place.store / "experiments" / "forged").exists()
    assert not (place.store / "experiments" / "clear").exists()
    key = read_private_key((KEYS / "studioml_request.pem").read_bytes(), b"PassPhrase")
    reports = [json.loads(open_sealed(path.read_bytes(), key)) for path in told.iterdir()]
    assert {report.get("experimentId") for report in reports} == {None, "good"}, "forgers are told nothing"
    assert {report["logging"]["message"] for report in reports if "experimentId" not in report} == {"scanning queue"}


def test_a_signers_key_may_come_and_go_while_the_runner_works(place: Workplace) -> None:
    certs = place.root / "certs"
    client_keys(certs)
    key = certs / "queues" / "signing" / "local_te"
    hidden = key.rename(key.with_name(".local_te"))
    runner = start(place, certs)
    runner.saw("no encrypted message is run until there are signers' public keys in")
    probes = count()

    def opens() -> bool:
        name = f"probe{next(probes)}."
        place.publish(sealed(place, name))
        place.settled()
        return f"experiment '{name}' is past its lifetime" in runner.log

    assert not opens()
    assert "is for queue local_test" in runner.log
    hidden.rename(key)
    until(opens, "the key counts")
    key.unlink()
    until(lambda: not opens(), "the key has gone")


@pytest.mark.parametrize("clear", [False, True])
def test_a_runner_that_has_no_keys_leaves_sealed_messages_to_others(place: Workplace, clear: bool) -> None:
    runner = place.start(f"--clear-text-messages={str(clear).lower()}", "--certs-dir", str(place.root / "none"))
    place.publish(sealed(place, "x"))
    runner.saw("queue local_test: a signature cannot be checked: the keys in")
    assert ("nothing can be run until there are keys in" in runner.log) is not clear
    assert runner.stop() == 0
    assert place.waiting == ["message"]
