"""Known secrets in all places where there may be some: none of them appears in anything that goes out."""

from __future__ import annotations

import base64
import json
import re
import secrets
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from runner.crypto.sealing import open_sealed, read_private_key
from tests.e2e.harness import Runner, Workplace, until

KEYS = Path(__file__).resolve().parent.parent / "vectors" / "keys"
PASSPHRASE = b"PassPhrase"


def canary(name: str) -> str:
    return f"{name}+{secrets.token_urlsafe(24)}/x"


RUNNERS = {
    name: canary(name) for name in ("amqp", "mgt", "aws", "variable", "proxy", "account", "profile", "key", "pass")
}
MESSAGES = {
    name: canary(name) for name in ("access", "secret", "session", "token", "pipurl", "signature", "jwt", "database")
}

# It shows what it has been given, in all forms, in pieces, and what it can find of the runner's.
SCRIPT = """
import base64, glob, json, os, sys, time
from urllib.parse import quote
known = json.loads(base64.b64decode(os.environ["BOX"]))
for secret in known:
    data = secret.encode()
    print("plain", secret, "quoted", quote(secret, safe=""), "json", json.dumps({"x": secret}))
    for before in range(3):
        print("base64", base64.b64encode(b"x" * before + data + b"yz").decode())
    print(json.dumps({"found": {"secret": secret, base64.b64encode(data).decode(): 1}}))
    print("on stderr", secret, file=sys.stderr)
    for piece in ("in pieces ", secret[:7], secret[7:], " done\\n"):
        sys.stdout.write(piece)
        sys.stdout.flush()
        time.sleep(0.01)
    with open("../modeldir/known", "a") as file:
        file.write("nothing here\\n")
for path in glob.glob("/proc/[0-9]*/environ") + glob.glob("/proc/[0-9]*/cmdline"):
    try:
        print(open(path, errors="replace").read().replace("\\0", " "))
    except OSError:
        pass
for path in glob.glob(os.environ["SECRET_FILES"], recursive=True):
    if os.path.isfile(path):
        print(open(path, errors="replace").read())
time.sleep(float(os.environ["LINGER"]))
raise SystemExit("it ends with " + known[0])
"""


@pytest.fixture
def runner(place: Workplace, tmp_path: Path) -> Iterator[Runner]:
    """Start one that has secrets of its own, in its arguments, its environment and files."""
    key = "\n".join([RUNNERS["account"]] * 4)
    account = {"client_email": "me@example.org", "private_key": f"-----BEGIN PRIVATE KEY-----\n{key}\n-----END-----"}
    (tmp_path / "account.json").write_text(json.dumps(account, indent=1))
    (tmp_path / "aws" / "one").mkdir(parents=True)
    (tmp_path / "aws" / "one" / "credentials").write_text(
        f"[default]\naws_access_key_id = AKIA{'X' * 16}\naws_secret_access_key = {RUNNERS['profile']}\n"
    )
    (tmp_path / "aws" / "one" / "config").write_text("[default]\nregion = us-west-2\n")
    for name, kind in (("encryption/ssh-privatekey-old", "key"), ("passphrase/ssh-passphrase-old", "pass")):
        (tmp_path / "message" / name).parent.mkdir(parents=True)
        (tmp_path / "message" / name).write_text("\n".join(["-----BEGIN RSA-----", *[RUNNERS[kind]] * 4]))
    shutil.copy(KEYS / "studioml_request.pem", tmp_path / "message" / "encryption" / "ssh-privatekey")
    (tmp_path / "message" / "passphrase" / "ssh-passphrase").write_bytes(PASSPHRASE)
    keys = tmp_path / "keys"
    keys.mkdir()
    (keys / "local_").write_text((KEYS / "studioml_request.pub.pem").read_text())
    (place.queues / "local_test_response").mkdir()
    yield place.start(
        *("--amqp-mgt-url", f"http://studio:{quote(RUNNERS['mgt'], safe='')}@127.0.0.1:1"),
        *("--google-credentials", str(tmp_path / "account.json"), "--sqs-certs", str(tmp_path / "aws")),
        *(
            "--encrypt-dir",
            str(tmp_path / "message"),
            "--sqs-endpoint",
            "http://127.0.0.1:1",
            "--response-signatures-dir",
            str(keys),
            "--max-attempts",
            "1",
        ),
        env={
            "AMQP_URL": f"amqp://studio:{quote(RUNNERS['amqp'], safe='')}@127.0.0.1:1/%2f",
            "AWS_SECRET_ACCESS_KEY": RUNNERS["aws"],
            "DEPLOY_TOKEN": RUNNERS["variable"],
            "https_proxy": f"http://me:{quote(RUNNERS['proxy'], safe='')}@127.0.0.1:1",
        },
    )


def submit(place: Workplace, script: str, key: str, **env: str) -> None:
    message = place.message(script, key)
    aws = {"access_key": MESSAGES["access"], "secret_access_key": MESSAGES["secret"]}
    for artifact in message["experiment"]["artifacts"].values():
        artifact["credentials"] = {"aws": {**aws, "session_token": MESSAGES["session"]}}
    url = f"file://{place.store}/nothing.tar?X-Amz-Signature={MESSAGES['signature']}"
    message["experiment"]["artifacts"]["old"] = {"qualified": url, "mutable": True}
    message["experiment"]["info"] = {"jwt": {"token": MESSAGES["jwt"]}}
    message["config"]["env"] = {
        "HF_TOKEN": MESSAGES["token"],
        "SITE": f"https://x:{quote(MESSAGES['pipurl'], safe='')}@h/",
        **env,
    }
    message["config"]["database"] = {"credentials": {"plain": {"user": "u", "password": MESSAGES["database"]}}}
    place.publish(message, key)


def told(place: Workplace, runner: Runner) -> dict[str, bytes]:
    """Return all that went out: log, stored objects and what is in them, reports."""
    found = {"log": runner.log.encode()}
    for path in place.store.rglob("*"):
        if path.is_file() and "blobstore" not in path.parts:
            found[str(path)] = path.read_bytes()
            if tarfile.is_tarfile(path):
                with tarfile.open(path) as tar:
                    for member in tar:
                        file = tar.extractfile(member)
                        found[f"{path}/{member.name}"] = file.read() if file else b""
    private = read_private_key((KEYS / "studioml_request.pem").read_bytes(), PASSPHRASE)
    for path in (place.queues / "local_test_response").iterdir():
        found[str(path)] = open_sealed(path.read_bytes(), private)
    return found


def leaks(data: bytes, canaries: dict[str, str]) -> list[str]:
    """Name the secrets of which there is more than a few characters."""

    def shows(secret: str) -> bool:
        forms = [secret, quote(secret, safe=""), quote(secret)]
        forms += [base64.b64encode(b"x" * before + secret.encode()).decode()[before + 1 :] for before in range(3)]
        # The first characters are the canary's name.
        return any(form[start : start + 10].encode() in data for form in forms for start in range(12, len(form) - 12))

    return [name for name, secret in canaries.items() if shows(secret)]


def test_no_secret_is_in_anything_that_goes_out(place: Workplace, runner: Runner, tmp_path: Path) -> None:
    box = base64.b64encode(json.dumps(list(MESSAGES.values())).encode()).decode()
    submit(place, SCRIPT, "demo", BOX=box, SECRET_FILES=f"{tmp_path}/[am]*/**", LINGER="2")
    running = until(lambda: [pid for pid in place.experiments() if b"main.py" in process(pid)], "it runs")
    runner.saw("starts")
    limits = Path(f"/proc/{runner.process.pid}/limits").read_text()
    assert re.search(r"Max core file size +0 +0", limits), "no core dump can have them either"
    everybody = descendants(runner.process.pid)
    assert len(everybody) >= 3, "the runner, an attempt, and one that is kept ready"
    for pid in everybody - set(running):
        assert not leaks(process(pid), {**RUNNERS, **MESSAGES}), process(pid)
    for pid in running:
        assert not leaks(process(pid), RUNNERS), "an experiment has what its message gives it, and no more"
    assert Path(f"/proc/{running[0]}").exists(), "it was still there"
    place.settled(90)
    runner.stop()

    out = told(place, runner)
    assert sum("local_test_response" in name for name in out) > 30
    for name, data in out.items():
        assert not leaks(data, {**RUNNERS, **MESSAGES}), name
    output = place.output()
    assert output.count("***") > 100
    assert "SystemExit" not in output
    assert "it ends with ***" in output
    assert "***" in json.dumps(place.metadata()["found"])


def test_an_upload_with_one_of_the_runners_secrets_is_stopped(place: Workplace, runner: Runner, tmp_path: Path) -> None:
    script = f"import shutil; shutil.copy({str(tmp_path / 'account.json')!r}, '../modeldir/stolen')"
    submit(place, script, "thief")
    line = runner.saw("holds a secret of the runner's own")
    assert "'modeldir'" in line
    place.settled()
    runner.stop()
    assert not (place.store / "experiments" / "thief" / "modeldir.tar").exists()
    assert not leaks(b"".join(told(place, runner).values()), RUNNERS)


def descendants(pid: int) -> set[int]:
    """Return a process and all below it."""
    found = {pid}
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        found |= descendants(int(child))
    return found


def process(pid: int) -> bytes:
    """Return what /proc shows of a process to everybody who may look."""
    try:
        return b"".join(Path(f"/proc/{pid}/{name}").read_bytes() for name in ("environ", "cmdline"))
    except OSError:
        return b""  # it has ended
