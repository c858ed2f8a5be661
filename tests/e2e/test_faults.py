"""Bad input and faults: each ends as protocol section 8 says, with one clear sentence where people look."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from runner.crypto.sealing import open_sealed, read_private_key
from tests.e2e.harness import Workplace, archive, put, until

KEYS = Path(__file__).resolve().parent.parent / "vectors" / "keys"


def changed(document: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """Return the document with one member changed, or removed where the value is ``...``."""
    copy = json.loads(json.dumps(document))
    *way, last = path.split(".")
    place = copy
    for step in way:
        place = place[step]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return copy


REFUSED = {
    "not JSON": (lambda _: b"{ this is no JSON", "JSON"),
    "no request": (lambda _: {"hello": "world"}, "experiment"),
    "no workspace": (lambda m: changed(m, "experiment.artifacts.workspace", ...), "workspace"),
    "label outside": (
        lambda m: changed(m, "experiment.artifacts", {**m["experiment"]["artifacts"], "../x": {}}),
        "experiment.artifacts",
    ),
    "filename outside": (lambda m: changed(m, "experiment.filename", "../../x.py"), "experiment.filename"),
    "filename absolute": (lambda m: changed(m, "experiment.filename", "/etc/x.py"), "experiment.filename"),
    "bad size": (lambda m: changed(m, "experiment.resources_needed.ram", "much"), "experiment.resources_needed.ram"),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_a_message_that_no_runner_can_run_is_refused_once(place: Workplace, fault: str) -> None:
    make, told = REFUSED[fault]
    (place.queues / "local_test" / ".dead").mkdir()
    place.publish(make(place.message("print('never')")), "bad")
    place.publish(place.message("print('good')"), "good")
    runner = place.start()
    place.settled()
    refusals = [line for line in runner.log.splitlines() if "refused" in line]
    assert len(refusals) == 1, runner.log
    assert told in refusals[0]
    assert "Traceback" not in runner.log
    assert [path.name for path in (place.queues / "local_test" / ".dead").iterdir()] == ["bad"]
    assert "good\n" in place.output()
    assert "never" not in place.output()


def test_all_faults_of_a_message_are_told_together(place: Workplace) -> None:
    message = changed(place.message(""), "experiment.filename", "/x.py")
    message = changed(message, "experiment.max_duration", "soon")
    place.publish(changed(message, "experiment.artifacts.output.qualified", 7))
    refusal = place.start().saw("refused")
    for path in ("experiment.filename", "experiment.max_duration", "experiment.artifacts.output.qualified"):
        assert path in refusal


def test_a_clear_message_is_refused_unless_allowed(place: Workplace) -> None:
    place.publish(place.message("print()"))
    refusal = place.start("--clear-text-messages=false").saw("refused")
    assert "--clear-text-messages" in refusal
    place.settled()


def hostile(name: str, **members: Any) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        member = tarfile.TarInfo(name)
        for field, value in members.items():
            setattr(member, field, value)
        tar.addfile(member)
        inside = tarfile.TarInfo("link/inside" if name == "link" else "after")
        tar.addfile(inside)
    return buffer.getvalue()


HOSTILE = {
    "absolute": hostile("/tmp/studio-runner-was-here"),
    "dots": hostile("../../../studio-runner-was-here"),
    "symlink": hostile("link", type=tarfile.SYMTYPE, linkname="/tmp"),
    "hard link": hostile("link", type=tarfile.LNKTYPE, linkname="/etc/passwd"),
    "device": hostile("device", type=tarfile.CHRTYPE, devmajor=1, devminor=3),
    "cut": archive({"main.py": b"print()\n" * 10_000})[:5000],
    "no archive": b"hello" * 1000,
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_or_broken_archive_fails_the_attempt_and_says_so(place: Workplace, kind: str) -> None:
    message = place.message("print('never')")
    put(place.store / "blobstore/demo.tar", HOSTILE[kind])
    place.publish(message)
    runner = place.start("--max-attempts", "1")
    place.settled()
    said = runner.saw("failed")
    assert "artifact 'workspace'" in said
    assert "Traceback" not in runner.log
    assert "artifact 'workspace'" in place.output()
    assert "never" not in place.output()
    assert place.metadata()["studioml"]["status"] == "failed"


def fails(place: Workplace, message: dict[str, Any], *options: str, attempts: int = 1, seconds: float = 60) -> str:
    """Run a message that fails that often; return its sentence, which must be in the log and in the output."""
    place.publish(message)
    runner = place.start("--max-attempts", str(attempts), *options)
    place.settled(seconds)
    told = [line for line in runner.log.splitlines() if " failed: " in line]
    assert len(told) == attempts, runner.log
    assert "not tried again" in told[-1]
    assert all("given back" in line for line in told[:-1])
    sentence = told[-1].split(" failed: ")[1].rsplit(" (", 1)[0]
    assert sentence in place.output()
    assert place.metadata()["studioml"]["status"] == "failed"
    return sentence


def test_a_script_that_fails_is_tried_as_often_as_allowed(place: Workplace) -> None:
    script = f"open('{place.root}/tries', 'a').write('x')\nprint('trying')\nraise SystemExit(3)\n"
    assert fails(place, place.message(script), attempts=3) == "main.py ended with exit status 3"
    assert (place.root / "tries").read_text() == "xxx"
    assert place.output().count("trying\n") == 3


def test_a_script_that_is_killed_says_by_what(place: Workplace) -> None:
    sentence = fails(place, place.message("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n"))
    assert sentence == "main.py was killed by SIGSEGV"


def test_a_missing_artifact_is_named(place: Workplace) -> None:
    message = place.message("print()")
    (place.store / "blobstore/demo.tar").unlink()
    assert "artifact 'workspace' is missing" in fails(place, message)


def test_an_artifact_that_is_not_what_the_message_says_fails(place: Workplace) -> None:
    message = changed(place.message("print()"), "experiment.artifacts.workspace.hash", "ab" * 32)
    assert "SHA-256" in fails(place, message)


def test_a_missing_file_is_named(place: Workplace) -> None:
    assert fails(place, place.message("print()", filename="other.py")) == "the workspace has no file 'other.py'"


def test_a_file_artifact_outside_of_what_the_operator_allows_is_refused(place: Workplace) -> None:
    message = place.message("print(open('../secret/passwd').read())")
    secret = {"qualified": "file:///etc/passwd", "mutable": False, "unpack": False}
    assert "--file-root" in fails(place, changed(message, "experiment.artifacts.secret", secret))
    assert "root:" not in place.output()


def test_a_requirement_that_does_not_exist_is_told_by_pip_and_by_us(place: Workplace) -> None:
    message = place.message("print()", pythonenv=["studio-runner-no-such-package-1f2e==9.9"])
    told = fails(place, message, seconds=180)
    assert "the requirements cannot be installed" in told
    assert "No matching distribution found" in told
    assert "studio-runner-no-such-package-1f2e" in place.output()


def test_more_than_the_disk_budget_fails(place: Workplace) -> None:
    message = place.message("print()", resources_needed={"cpus": 1, "ram": "1mb", "hdd": "1mb"})
    put(place.store / "blobstore/demo.tar", archive({"main.py": b"#" * 3_000_000}))
    assert "hdd" in fails(place, message)


def test_a_script_that_never_ends_is_stopped_with_all_its_children(place: Workplace) -> None:
    script = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))
for group in (False, True):
    subprocess.Popen([sys.executable, "-c", "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(600)"],
                     start_new_session=group)
print("endless", flush=True)
time.sleep(600)
"""
    place.publish(place.message("print('the environment is there')", key="before"))
    assert place.start("--limit-tasks", "1").ended() == 0
    sentence = fails(place, place.message(script, max_duration="5s"))
    assert "time limit (max_duration 5s)" in sentence
    assert "ended by SIGTERM" in place.output()
    until(lambda: not place.experiments(), "no child is left")


def test_an_experiment_past_its_lifetime_never_runs(place: Workplace) -> None:
    message = changed(place.message("print()", time_added=1.0), "config.experimentLifetime", "1h")
    put(place.root / "readers" / "local_", (KEYS / "studioml_request.pub.pem").read_bytes())
    (place.queues / "local_test_response").mkdir()
    place.publish(message)
    runner = place.start("--response-signatures-dir", str(place.root / "readers"))
    place.settled()
    assert "past its lifetime" in runner.log
    assert not (place.store / "experiments").exists()
    assert runner.stop() == 0
    private = read_private_key((KEYS / "studioml_request.pem").read_bytes(), (KEYS / "secret_phrase").read_bytes())
    sealed = [path.read_bytes() for path in (place.queues / "local_test_response").iterdir() if path.is_file()]
    progress = [json.loads(open_sealed(body, private)).get("progress", {}) for body in sealed]
    (failed,) = [each for each in progress if each.get("state") == "Failed"]
    assert "past its lifetime" in failed["error"]["msg"]


def test_the_client_can_stop_an_experiment_through_its_record(place: Workplace) -> None:
    message = place.message("import time\nprint('on', flush=True)\ntime.sleep(600)\n")
    message["config"]["database"] = {"type": "local", "endpoint": str(place.store), "bucket": "database"}
    record = place.store / "database/experiments/demo"
    put(record, json.dumps({**message["experiment"], "status": "waiting"}).encode())
    place.publish(message)
    runner = place.start()
    until(lambda: json.loads(record.read_text())["status"] == "running", "the record says that it runs")
    put(record, json.dumps({**json.loads(record.read_text()), "status": "stopped"}).encode())
    place.settled()
    assert "stopped it" in runner.saw("acknowledged")
    assert json.loads(record.read_text())["outcome"]["fault"] == "experimenter"


def test_all_option_mistakes_are_told_at_once(place: Workplace) -> None:
    runner = place.start("--max-cores", "many", "--nonsense", env={"QUEUE_MATCH": "(", "SLACK_HOOK": "http://x"})
    assert runner.ended() == 2
    for told in ("--max-cores", "--nonsense", "QUEUE_MATCH", "SLACK_HOOK"):
        assert told in runner.log
    assert "Traceback" not in runner.log
