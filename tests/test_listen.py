"""An experimenter reads reports: as lines, as JSON, from a directory and from a broker; nothing hurts the terminal."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from runner.commands.listen import line_of
from runner.crypto.sealing import Sealer, read_public_key
from runner.queues import amqp
from runner.reporting.report import Reporter, Severity, State
from tests.servers.rabbitmq import Broker

ROOT = Path(__file__).resolve().parent.parent
KEYS = ROOT / "tests" / "vectors" / "keys"
KEY = ["--private-key", str(KEYS / "studioml_request.pem"), "--passphrase-file", str(KEYS / "secret_phrase")]
SEALER = Sealer(read_public_key((KEYS / "studioml_request.pub.pem").read_text()))
OURS, THEIRS = Reporter("mine", "host-1", "host"), Reporter("theirs", "host-2", "host")
AT = 1795444912.5
STAMP = "2026-11-23T14:41:52.500Z"

REPORTS = [
    OURS.logging("scanning queue", Severity.INFO, {"queue": "local_q"}, at=AT),
    OURS.progress(State.STARTED, at=AT),
    OURS.json('{"loss": 1}', at=AT),
    OURS.progress(State.FAILED, "it was killed", code=137, at=AT),
]
LINES = [
    f"{STAMP}  mine  Info  scanning queue  queue=local_q",
    f"{STAMP}  mine  Started",
    f'{STAMP}  mine  Started  {{"loss": 1}}',
    f"{STAMP}  mine  Failed  it was killed  (code 137)",
]


def environment() -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}


def listen(*options: str, **more: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "runner", "listen", *options]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=60, env={**environment(), **more}
    )


def put(root: Path, *reports: bytes) -> list[str]:
    """Send reports, sealed, and return the options that name their queue and the key."""
    deliver(root, *map(SEALER.seal, reports))
    return ["--queue-root", str(root), *KEY]


def deliver(root: Path, *bodies: bytes) -> None:
    """Put messages into the queue, behind those that are there, and old enough to be taken for whole at once."""
    queue = root / "local_q_response"
    queue.mkdir(exist_ok=True)
    for number, body in enumerate(bodies, left(root)):
        path = queue / f"{number}"
        path.write_bytes(body)
        os.utime(path, (AT - 86400 * 365 * 2 + number,) * 2)


def left(root: Path) -> int:
    return len(list((root / "local_q_response").iterdir()))


def test_each_report_is_a_line_and_taken_off_the_queue(tmp_path: Path) -> None:
    done = listen(*put(tmp_path, *REPORTS), "--limit", "4", "local_q")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == LINES
    assert left(tmp_path) == 0


def test_the_response_queue_may_be_named_itself(tmp_path: Path) -> None:
    assert listen(*put(tmp_path, REPORTS[0]), "--limit", "1", "local_q_response").stdout.splitlines() == LINES[:1]


def test_reports_can_be_had_as_json(tmp_path: Path) -> None:
    nasty = OURS.text("\x9b2J\u202e", at=AT)
    done = listen(*put(tmp_path, *REPORTS, nasty), "--limit", "5", "--json", "local_q")
    assert [json.loads(line) for line in done.stdout.splitlines()] == [json.loads(each) for each in (*REPORTS, nasty)]
    assert done.stdout.isascii()


def test_after_the_limit_the_rest_stays_where_it_is(tmp_path: Path) -> None:
    assert len(listen(*put(tmp_path, *REPORTS), "--limit", "3", "local_q").stdout.splitlines()) == 3
    assert left(tmp_path) == 1


def test_only_one_experiments_reports_are_shown_if_it_is_named(tmp_path: Path) -> None:
    reports = [THEIRS.text("no", at=AT), OURS.text("yes", at=AT), THEIRS.text("no", at=AT), OURS.text("too", at=AT)]
    done = listen(*put(tmp_path, *reports), "--limit", "2", "--experiment", "mine", "local_q")
    assert done.stdout.splitlines() == [f"{STAMP}  mine  yes", f"{STAMP}  mine  too"]
    assert left(tmp_path) == 0


def test_what_cannot_be_opened_is_told_and_dropped(tmp_path: Path) -> None:
    options = put(tmp_path, b"not json", b"[]", REPORTS[0])
    deliver(tmp_path, b'{"not": "sealed"}', SEALER.seal(REPORTS[1]))
    done = listen(*options, "--limit", "2", "local_q")
    assert done.stdout.splitlines() == LINES[:2]
    assert done.stderr.splitlines() == [
        "studio-runner: a message of queue local_q_response is dropped: it is not the JSON of a report",
        "studio-runner: a message of queue local_q_response is dropped: it is not the JSON of a report",
        "studio-runner: a message of queue local_q_response is dropped: the message cannot be decrypted",
    ]
    assert left(tmp_path) == 0


def test_time_ends_it_and_too_few_reports_are_an_error(tmp_path: Path) -> None:
    options = put(tmp_path, REPORTS[0])
    done = listen(*options, "--timeout", "100ms", "local_q")
    assert done.returncode == 0
    late = listen(*put(tmp_path), "--timeout", "100ms", "--limit", "2", "local_q")
    assert late.returncode == 1
    assert late.stderr == "studio-runner: 0 of 2 reports came in 0.1s on local_q_response\n"


@pytest.fixture
def started() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    processes: list[subprocess.Popen[bytes]] = []

    def start(*options: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "runner", "listen", *options]
        processes.append(subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_quietly(
    tmp_path: Path, started: Callable[..., subprocess.Popen[bytes]], number: signal.Signals
) -> None:
    process = started(*put(tmp_path, REPORTS[0]), "local_q")
    assert process.stdout
    assert process.stdout.readline().decode().rstrip() == LINES[0]
    process.send_signal(number)
    assert process.communicate(timeout=30) == (b"", b"")
    assert process.returncode == 0


def test_what_nobody_reads_stays_in_the_queue(tmp_path: Path, started: Callable[..., subprocess.Popen[bytes]]) -> None:
    process = started(*put(tmp_path, REPORTS[0]), "local_q")
    assert process.stdout
    assert process.stdout.readline()
    process.stdout.close()
    put(tmp_path, REPORTS[1])
    process.wait(30)
    assert process.stderr
    assert (process.returncode, process.stderr.read()) == (0, b"")
    assert left(tmp_path) == 1


def test_reports_come_from_a_broker_without_its_management_api(rabbitmq: Broker) -> None:
    queue = rabbitmq.declare()
    rabbitmq.declare(f"{queue}_response")
    for report in REPORTS:
        amqp.publish(rabbitmq.url, f"{queue}_response", SEALER.seal(report))
    done = listen("--amqp-url", rabbitmq.url, *KEY, "--amqp-mgt-url", "http://127.0.0.1:1", "--limit", "4", queue)
    assert done.stdout.splitlines() == LINES
    assert rabbitmq.depth(f"{queue}_response") == 0


def test_options_can_be_variables(tmp_path: Path) -> None:
    put(tmp_path, REPORTS[0])
    variables = {
        "QUEUE_ROOT": str(tmp_path),
        "STUDIO_PRIVATE_KEY": KEY[1],
        "STUDIO_PASSPHRASE_FILE": KEY[3],
        "STUDIO_LIMIT": "1",
    }
    assert listen("local_q", **variables).stdout.splitlines() == LINES[:1]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ([*KEY], "name one queue"),
        ([*KEY, "a", "b"], "name one queue"),
        (["local_q"], "reports are encrypted: give --private-key"),
        (["--private-key", "missing", "local_q"], "missing cannot be read: No such file or directory"),
        ([*KEY[:2], "local_q"], "the private key is protected by a passphrase, and none is given"),
        (["--private-key", str(KEYS / "studioml_signing"), "local_q"], "the private key is not one of RSA"),
    ],
)
def test_mistakes_are_told_in_a_sentence(tmp_path: Path, options: list[str], told: str) -> None:
    done = listen("--queue-root", str(tmp_path), *options)
    assert (done.returncode, done.stdout) == (2, "")
    assert told in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("report", "line"),
    [
        ({}, "-  -"),
        ({"time": None, "text": "x"}, "-  -  x"),
        ({"text": "a\x1b[31m\x9b\r\n\u2028\u202eb"}, "-  -  a\\x1b[31m\\x9b\\r\\n\\u2028\\u202eb"),
        ({"text": "a\tb"}, "-  -  a       b"),
        (
            {"time": STAMP, "experimentId": "e\n", "progress": {"error": 3, "json": "é 😀"}},
            f"{STAMP}  e\\n  Prestart  é 😀",
        ),
        ({"logging": [], "progress": {"state": ["\x07"]}}, "-  -  ['\\x07']"),
        ({"logging": {"message": "m", "fields": {"a\x00": "b\x07"}}}, "-  -  m  a\\x00=b\\x07"),
    ],
)
def test_foreign_text_stays_in_its_line_and_does_nothing_to_a_terminal(report: dict[str, Any], line: str) -> None:
    assert line_of(report) == line
