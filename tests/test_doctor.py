"""``studio-runner doctor``, as its users start it: what it says of things that are well, and of those that are not."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import redirect_stdout
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from runner.commands.doctor import keys, kubernetes, main
from runner.commands.doctor.base import DoctorSettings, Finding, Level, Subject, examine, ok
from runner.errors import Unavailable
from runner.supervisor.api_server import Pod
from tests.e2e.harness import archive, put
from tests.servers.ceph import S3Server
from tests.servers.hook import SECRET
from tests.servers.hook import serving as serving_hook
from tests.servers.http import Served, serving
from tests.servers.kubernetes import NAMESPACE, started
from tests.servers.nvml import MIB, Device, Nvml
from tests.servers.rabbitmq import PASSWORD, Broker
from tests.servers.sqs import REGION, SQSServer
from tests.servers.starting import free_ports

ROOT = Path(__file__).resolve().parent.parent
KEYS = ROOT / "tests" / "vectors" / "keys"


def _environment(root: Path) -> dict[str, str]:
    """An index that is a directory, and no options from outside."""
    (root / "index").mkdir(exist_ok=True)
    env = {"PATH": os.environ["PATH"], "HOME": str(root), "PYTHONPATH": str(ROOT), "TMPDIR": str(root)}
    return {**env, "PIP_INDEX_URL": f"file://{root}/index"}


def doctor(root: Path, *options: object, **environ: str) -> subprocess.CompletedProcess[str]:
    """Start it in an empty directory."""
    argv = [sys.executable, "-m", "runner", "doctor", *map(str, options)]
    env = {**_environment(root), **environ}
    return subprocess.run(argv, env=env, cwd=root, capture_output=True, text=True, timeout=60, check=False)


def findings(root: Path, *options: object, **environ: str) -> dict[str, list[tuple[str, str]]]:
    """Return level and words of all findings by their check; without the time that a start takes."""
    told = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(told):
        patch.setattr(os, "environ", {**_environment(root), **environ})
        patch.setattr("tempfile.tempdir", str(root))
        status = main(["--json", *map(str, options)])
    document = json.loads(told.getvalue())
    levels = {each["level"] for each in document["findings"]}
    assert document["ok"] is ("fail" not in levels) is (status == 0)
    found: dict[str, list[tuple[str, str]]] = {}
    for each in document["findings"]:
        found.setdefault(each["check"], []).append((each["level"], f"{each['what']} → {each['remedy']}"))
    return found


def the(found: dict[str, list[tuple[str, str]]], check: str) -> tuple[str, str]:
    (only,) = found[check]
    return only


@pytest.fixture
def queues(tmp_path: Path) -> Path:
    for name in ("local_work", "local_work_response", "other"):
        (tmp_path / "queues" / name).mkdir(parents=True)
    return tmp_path / "queues"


def test_a_good_set_up_is_ok_in_every_line_and_in_the_exit_status(tmp_path: Path, queues: Path) -> None:
    done = doctor(tmp_path, "--queue-root", queues, "--file-root", tmp_path, "--clear-text-messages")
    assert (done.returncode, done.stderr) == (0, "")
    assert {line.split()[0] for line in done.stdout.splitlines() if not line.startswith(" ")} <= {"ok", "skip", "warn"}
    assert "queues to take work from: local_work; not from local_work_response, other" in done.stdout
    assert "Pythons for experiments: " in done.stdout
    assert not (tmp_path / "studio-runner").exists(), "it changes nothing"


def test_mistakes_in_the_options_are_told_and_the_rest_is_looked_at_all_the_same(tmp_path: Path, queues: Path) -> None:
    found = findings(tmp_path, "--queue-root", queues, "--max-cores", "many", "--nonsense", CACHE_SIZE="1mb")
    assert [level for level, _ in found["options"]] == ["fail", "fail", "fail"]
    assert the(found, "directory")[0] == "ok"


def test_a_runner_that_would_accept_nothing_is_told_so(tmp_path: Path, queues: Path) -> None:
    level, words = the(findings(tmp_path, "--queue-root", queues), "keys")
    assert level == "fail"
    assert "no message can be accepted" in words and "--clear-text-messages" in words


def test_queues_that_do_not_match_are_named(tmp_path: Path, queues: Path) -> None:
    level, words = the(findings(tmp_path, "--queue-root", queues, "--queue-match", "^gpu_"), "directory")
    assert level == "warn"
    assert "local_work, local_work_response, other" in words and "'^gpu_'" in words


def test_rabbitmq_is_looked_at_with_its_queues_and_their_windows(tmp_path: Path, rabbitmq: Broker) -> None:
    queue = rabbitmq.declare()
    rabbitmq.declare("elsewhere")
    short = rabbitmq.declare(
        "rmq_short", durable=True, arguments={"x-queue-type": "quorum", "x-consumer-timeout": 10000}
    )
    options = ["--amqp-url", rabbitmq.url, "--amqp-mgt-url", rabbitmq.management_url]
    told = findings(tmp_path, *options)["rabbitmq"]
    assert [level for level, _ in told] == ["ok", "ok", "ok", "warn"]
    assert f"work from: {queue}, {short}; not from elsewhere" in told[1][1]
    assert f"{queue} may be held for the broker's consumer_timeout" in told[2][1]
    assert f"{short} may be held for 10s only" in told[3][1]
    named = findings(tmp_path, "--amqp-url", rabbitmq.url, "--queue", f"{queue},rmq_none")["rabbitmq"]
    assert [level for level, _ in named] == ["ok", "ok", "warn"]
    assert "no queue rmq_none" in named[2][1]


def test_what_is_wrong_with_rabbitmq_is_told_without_its_password(tmp_path: Path, rabbitmq: Broker) -> None:
    (port,) = free_ports(1)
    for url, told in (
        (rabbitmq.url.replace(PASSWORD, "wrong-Secret"), "refuses the name or password of user 'studio'"),
        (f"amqp://studio:wrong-Secret@127.0.0.1:{port}/", "cannot be reached: Connection refused"),
        ("amqp:/studio:wrong-Secret", "--amqp-url cannot be understood"),
    ):
        done = doctor(tmp_path, "--amqp-url", url)
        assert done.returncode == 1
        assert told in done.stdout
        assert "wrong-Secret" not in done.stdout + done.stderr
    level, words = findings(tmp_path, "--amqp-url", rabbitmq.url)["rabbitmq"][-1]
    assert (level, "enable the plugin rabbitmq_management" in words) == ("fail", True)


def test_sqs_is_looked_at_for_each_account(tmp_path: Path, moto: SQSServer) -> None:
    moto.create("sqs_doctor")
    given = ["--sqs-region", REGION, "--sqs-endpoint", moto.endpoint]
    level, words = the(findings(tmp_path, *given, **moto.environ), "sqs")
    assert (level, "sqs_doctor" in words) == ("ok", True)
    level, words = the(findings(tmp_path, *given, AWS_EC2_METADATA_DISABLED="true"), "sqs")
    assert (level, "no AWS credentials are found" in words) == ("fail", True)


def test_a_store_is_read_and_written(tmp_path: Path, s3: S3Server) -> None:
    bucket, pair = s3.bucket(), s3.credentials
    store = f"s3://{s3.endpoint.rpartition('/')[2]}/{bucket}"
    good = {"AWS_ACCESS_KEY_ID": pair.access_key, "AWS_SECRET_ACCESS_KEY": pair.secret_key}
    found = findings(tmp_path, "--store", store, **good)
    assert [level for level, _ in found["store"]] == ["ok", "ok"]
    assert the(found, "clock")[0] == "ok"
    for wrong, told in (
        ({**good, "AWS_SECRET_ACCESS_KEY": "wrong-Secret"}, "the secret key does not belong to access key"),
        ({}, "does not allow anonymous access to"),
    ):
        level, words = findings(tmp_path, "--store", store, **wrong)["store"][-1]
        assert (level, told in words, "wrong-Secret" in words) == ("fail", True, False)
    ((level, words),) = findings(tmp_path, "--store", f"{store}-none", **good)["store"]
    assert (level, "does not exist" in words) == ("fail", True)


def message(root: Path, **experiment: Any) -> Path:
    artifacts = {
        "workspace": {"qualified": f"file://{root}/store/code.tar", "unpack": True},
        "output": {"qualified": f"file://{root}/store/results/output.tar", "unpack": True, "mutable": True},
    }
    given = {"key": "k", "filename": "x.py", "artifacts": artifacts, "resources_needed": {"ram": "1mb"}}
    path = root / "message.json"
    path.write_text(json.dumps({"experiment": {**given, **experiment}, "config": {}}))
    return path


def test_a_message_is_looked_at_with_its_stores(tmp_path: Path) -> None:
    found = findings(tmp_path, "--file-root", tmp_path, message(tmp_path))
    assert the(found, "message")[0] == "ok"
    assert [level for level, _ in found["store of the message 1"]] == ["fail"]
    assert "'workspace' is not there" in found["store of the message 1"][0][1]
    assert [level for level, _ in found["store of the message 2"]] == ["ok", "ok"]
    put(tmp_path / "store" / "code.tar", archive({"x.py": b""}))
    found = findings(tmp_path, "--file-root", tmp_path, message(tmp_path))
    assert [level for level, _ in found["store of the message 1"]] == ["ok"]
    level, words = findings(tmp_path, message(tmp_path))["store of the message 1"][-1]
    assert (level, "--file-root" in words) == ("fail", True)


def test_a_message_that_this_machine_cannot_run_is_told(tmp_path: Path) -> None:
    for wanted, told in (
        ({"pythonver": "3.99"}, "no Python 3.99"),
        ({"resources_needed": {"ram": "900tb"}}, "needs 1 cpu, 819 TiB ram"),
        ({"resources_needed": {"gpus": 1}}, "needs 1 cpu, 0 B ram, 0 B hdd, 1 GPU slot"),
    ):
        level, words = findings(tmp_path, "--cpu-only", message(tmp_path, **wanted))["machine"][-1]
        assert (level, told in words) == ("fail", True), words
    assert findings(tmp_path, message(tmp_path))["machine"][-1][0] == "ok"
    bad = findings(tmp_path, message(tmp_path, filename="/x.py", pythonver="new"))
    assert [level for level, _ in bad["message"]] == ["fail", "fail"]


def test_package_indexes_are_asked_and_passwords_not_shown(tmp_path: Path) -> None:
    with serving() as server:
        server.objects["/simple/pip/"] = Served(b"", authorization="Basic dTpwdy1TZWNyZXQ=")
        good = findings(tmp_path, PIP_INDEX_URL=f"http://u:pw-Secret@{server.host}/simple/")
        assert the(good, "index") == ("ok", f"package index http://{server.host}/simple/ answers → ")
        bad = doctor(tmp_path, PIP_INDEX_URL=f"http://u:wrong-Secret@{server.host}/simple/")
        assert f"package index http://{server.host}/simple/ refuses us with status 401" in bad.stdout
        assert "Secret" not in bad.stdout + bad.stderr
    away = the(findings(tmp_path, PIP_INDEX_URL=f"http://{server.host}/simple"), "index")
    assert (away[0], "cannot be reached" in away[1]) == ("fail", True)


def test_who_is_asked_for_the_time_is_given_no_password(tmp_path: Path) -> None:
    """Its certificate is not looked at: with a wrong clock none is valid."""
    with serving() as server:
        (tmp_path / ".netrc").write_text("machine 127.0.0.1 login me password hunter2")
        for index in (f"http://me:hunter2@{server.host}/simple", f"http://{server.host}/simple"):
            findings(tmp_path, PIP_INDEX_URL=index, HOME=str(tmp_path))
        asked = [
            each["Authorization"]
            for line, each in zip(server.seen, server.headers, strict=True)
            if line.startswith("HEAD")
        ]
        assert asked == [None, None]


@pytest.mark.parametrize(("ahead", "level"), [(0, "ok"), (60, "warn"), (1000, "fail"), (-1000, "fail")])
def test_a_clock_that_is_wrong_is_told(tmp_path: Path, ahead: int, level: str) -> None:
    with serving() as server:
        date = formatdate(time.time() - ahead, usegmt=True)
        server.objects["/simple"] = Served(headers={"Date": date})
        told = the(findings(tmp_path, PIP_INDEX_URL=f"http://{server.host}/simple"), "clock")
    assert told[0] == level
    assert ("ahead" if ahead > 0 else "behind" if ahead < 0 else "right") in told[1]


def test_keys_are_told_with_the_fingerprints_of_ssh_keygen(tmp_path: Path) -> None:
    for path, source in (
        ("message/encryption/ssh-privatekey", "studioml_request.pem"),
        ("message/passphrase/ssh-passphrase", "secret_phrase"),
        ("signing/rmq_", "studioml_signing.pub"),
        ("reports/rmq_", "studioml_request.pub.pem"),
    ):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(KEYS / source, tmp_path / path)
    (tmp_path / "message/encryption/ssh-privatekey").chmod(0o600)
    subject = Subject(
        DoctorSettings(
            encrypt_dir=str(tmp_path / "message"),
            request_signatures_dir=str(tmp_path / "signing"),
            response_signatures_dir=str(tmp_path / "reports"),
        ),
        (),
        {},
    )
    told = [*keys.messages(subject), *keys.signers(subject), *keys.readers(subject)]
    assert [each.level for each in told] == [Level.OK] * 3
    for each, source in zip(
        told, ("studioml_request.pub.pem", "studioml_signing.pub", "studioml_request.pub.pem"), strict=True
    ):
        assert _ssh_keygen(KEYS / source, tmp_path) in each.what
    (tmp_path / "signing" / "rmq_").write_text("ssh-ed25519 AAAA!")
    (tmp_path / "message/passphrase/ssh-passphrase").write_text("wrong")
    assert [each.level for each in (*keys.messages(subject), *keys.signers(subject))] == [Level.FAIL, Level.FAIL]


def _ssh_keygen(key: Path, root: Path) -> str:
    if shutil.which("ssh-keygen") is None:
        pytest.skip("no ssh-keygen to compare with")
    if key.suffix == ".pem":
        command = ["ssh-keygen", "-i", "-m", "PEM", "-f", str(key)]
        (root / "converted").write_bytes(subprocess.run(command, capture_output=True, check=True).stdout)
        key = root / "converted"
    shown = subprocess.run(
        ["ssh-keygen", "-l", "-E", "sha256", "-f", str(key)], capture_output=True, text=True, check=True
    )
    return shown.stdout.split()[1]


def test_kubernetes_rights_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with started(tmp_path) as api:
        monkeypatch.setattr(Pod.of.__func__, "__defaults__", ("", tmp_path))
        subject = Subject(DoctorSettings(), (), api.environ)
        (told,) = kubernetes.rights(subject)
        assert told.level is Level.OK and NAMESPACE in told.what
        api.put("studioml-go-runner", "DrainAndSuspend")
        _, told = kubernetes.rights(subject)
        assert told.level is Level.WARN and "studioml-go-runner says DrainAndSuspend" in told.what
        api.put("pod-1", "Running")
        (told,) = kubernetes.rights(subject)
        assert told.level is Level.OK
        api.permit("list")
        (told,) = kubernetes.rights(subject)
        assert told.level is Level.FAIL and "cannot watch ConfigMap" in told.what and "RoleBinding" in told.remedy
        api.permit()
        (told,) = kubernetes.rights(subject)
        assert told.level is Level.FAIL and "cannot list ConfigMap" in told.what and "get, list and watch" in told.what
        api.token = "another"
        (told,) = kubernetes.rights(subject)
        assert told.level is Level.FAIL and "does not accept the token" in told.what and not told.remedy
        api.end()


def test_slacks_hook_is_asked_without_a_post(tmp_path: Path) -> None:
    with serving_hook() as hook:
        hook.answers = [(400, "no_text"), (404, "no_service")]
        assert the(findings(tmp_path, SLACK_HOOK=hook.url), "slack")[0] == "ok"
        level, words = the(findings(tmp_path, SLACK_HOOK=hook.url), "slack")
        assert (level, "404 no_service" in words, SECRET in words) == ("fail", True, False)
        assert hook.posts == []


def test_gpus_are_told_with_their_slots_and_their_troubles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    busy = Device(processes={1: 500 * MIB}, used=600 * MIB)
    monkeypatch.setattr(
        "runner.machine.nvml.load", lambda: Nvml(Device(), busy, Device(capability=(8, 0), remap_failed=1))
    )
    told = findings(tmp_path)["gpu"]
    assert [level for level, _ in told] == ["ok", "warn", "fail"]
    assert told[0][1].startswith("GPU 0 (Tesla V100-SXM2-16GB) has 16 slots and 15.8 GiB: NVIDIA's driver")
    assert "is not given out" in told[1][1]
    assert "defect memory" in told[2][1]
    assert findings(tmp_path, "--cpu-only")["gpu"] == [("skip", "experiments get no GPUs: --cpu-only is set → ")]


def test_containers_are_looked_at_where_images_are_allowed(tmp_path: Path) -> None:
    program = tmp_path / "apptainer"
    program.write_text("#!/bin/sh\necho apptainer version 1.4.2\n")
    program.chmod(0o755)
    allow = ["--singularity-allow", "docker://lab.example/*"]
    assert the(findings(tmp_path, "--singularity", program), "container")[0] == "skip"
    level, words = the(findings(tmp_path, "--singularity", program, *allow), "container")
    assert (level, "apptainer version 1.4.2" in words, "docker://lab.example/*" in words) == ("ok", True, True)
    program.write_text("#!/bin/sh\nexit 1\n")
    assert the(findings(tmp_path, "--singularity", program, *allow), "container")[0] == "fail"


def test_a_check_that_hangs_or_breaks_does_not_keep_the_others_from_being_told() -> None:
    go_on = threading.Event()

    def hangs(_subject: Subject) -> Iterator[Finding]:
        yield ok("the first half")
        go_on.wait(60)

    def fails(_subject: Subject) -> Iterator[Finding]:
        raise Unavailable("it is away")

    checks = {"a": hangs, "b": fails, "c": lambda _: [ok("well")]}
    told = list(examine(checks, Subject(DoctorSettings(), (), {}), limit=2.0))
    go_on.set()
    assert [(name, each.level.value) for name, each in told] == [("a", "ok"), ("a", "fail"), ("b", "fail"), ("c", "ok")]


def test_a_missing_message_is_a_mistake_in_the_command(tmp_path: Path) -> None:
    done = doctor(tmp_path, "none.json")
    assert (done.returncode, done.stdout) == (2, "")
    assert "none.json cannot be read: No such file or directory" in done.stderr
    misspelt = doctor(tmp_path, "--quee-root", ".")
    assert misspelt.returncode == 1
    assert "--quee-root is no option of this program: did you mean --queue-root?" in misspelt.stdout


def test_whoever_has_read_enough_may_go_away(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "runner", "doctor"]
    process = subprocess.Popen(
        argv, env=_environment(tmp_path), cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    _, told = process.communicate(timeout=60)
    assert told == b""
