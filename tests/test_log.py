"""The log: its formats, its levels, and what events about an experiment carry."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from runner import log
from runner.log import Style
from runner.message.request import from_document
from runner.monitoring.journal import Journal
from runner.monitoring.metrics import Metrics
from runner.queues.settle import Decision
from runner.secrets.masking import Secrets
from runner.supervisor.intake import Received
from runner.supervisor.running import Running

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """Put back what pytest has made of the log."""
    root, ours = logging.getLogger(), logging.getLogger("runner")
    handlers, level, own = list(root.handlers), root.level, ours.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    ours.setLevel(own)


def written(style: Style, capsys: pytest.CaptureFixture[str], *events: tuple[int, str], **fields: object) -> list[str]:
    log.start(style)
    for level, words in events:
        log.about(logging.getLogger("runner.test"), **fields).log(level, words)
    return capsys.readouterr().err.splitlines()


@pytest.mark.parametrize(
    ("logxi", "form", "wanted"),
    [
        ("", "", Style(logging.INFO, "happy", 0)),
        ("*=DBG,pika=ERR", "JSON", Style(logging.DEBUG, "json", 0)),
        ("*=WRN", "happy,maxcol=120", Style(logging.WARNING, "happy", 120)),
        ("*=err", "text", Style(logging.ERROR, "text", 0)),
        ("*=TRC", "t=2006-01-02,fit,maxcol=wide", Style(logging.DEBUG, "happy", 0)),
        ("other=DBG", "", Style(logging.INFO, "happy", 0)),
    ],
)
def test_logxis_variables_are_understood(logxi: str, form: str, wanted: Style) -> None:
    style = Style.of({"LOGXI": logxi, "LOGXI_FORMAT": form})
    assert style == wanted
    assert Style.of(style.variables()) == style, "another process is told the same"


def test_options_win_over_variables_and_debug_is_the_last_resort() -> None:
    environ = {"LOGXI": "*=ERR", "LOGXI_FORMAT": "JSON"}
    assert Style.of(environ, level="info", form="text", debug=True) == Style(logging.INFO, "text")
    assert Style.of(environ, debug=True).level == logging.ERROR
    assert Style.of({}, debug=True).level == logging.DEBUG


def test_json_has_one_event_a_line_with_its_fields(capsys: pytest.CaptureFixture[str]) -> None:
    fields = {"experiment": "k\n1", "queue": "rmq_a", "attempt": 2}
    (line,) = written(Style(form="json"), capsys, (logging.WARNING, "two\nlines"), **fields)
    event = json.loads(line)
    assert datetime.fromisoformat(event.pop("time")).tzinfo is not None
    assert event == {"level": "warning", "message": "two\nlines", **fields}


def test_a_traceback_is_part_of_its_event_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    log.start(Style(form="json"))
    try:
        raise ValueError("no")
    except ValueError:
        logging.getLogger("runner").exception("it broke")
    event = json.loads(capsys.readouterr().err)
    assert event["message"] == "it broke"
    assert event["exception"].endswith("ValueError: no")


def test_text_keeps_an_event_in_its_line_and_the_terminal_safe(capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = written(Style(), capsys, (logging.INFO, "a\nERROR b \x1b[31m é"))
    assert line.endswith(" INFO    a\\nERROR b \\x1b[31m é")


def test_long_lines_are_broken_where_that_is_wanted(capsys: pytest.CaptureFixture[str]) -> None:
    lines = written(Style(width=60), capsys, (logging.INFO, "word " * 30))
    assert len(lines) > 2
    assert all(len(line) <= 60 for line in lines)
    assert all(line.startswith("    word") for line in lines[1:])


def test_a_secret_is_masked_where_a_line_is_broken_too(capsys: pytest.CaptureFixture[str]) -> None:
    log.mask("test", Secrets.of(["hidden-Secret-of-many-characters"]))
    try:
        lines = written(Style(width=50), capsys, (logging.INFO, "it is hidden-Secret-of-many-characters"))
    finally:
        log.unmask("test")
    assert "Secret" not in "".join(line.strip() for line in lines)


@pytest.mark.parametrize("form", ["json", "text"])
def test_a_secret_is_masked_where_an_error_shows_it_in_pythons_words(
    capsys: pytest.CaptureFixture[str], form: str
) -> None:
    secret = "p'ä\\s\"w0rd"
    log.mask("here", Secrets.of([secret]))
    try:
        (line,) = written(Style(form=form), capsys, (logging.INFO, repr(f"{secret}'\"")))
    finally:
        log.unmask("here")
    assert "***" in line
    assert "w0rd" not in line


def test_an_experiments_secrets_stay_masked_when_another_one_of_its_name_ends(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def running(secret: str) -> Running:
        artifacts = {"workspace": {"qualified": "http://h/k.tar"}}
        experiment = {"key": "k", "filename": "x.py", "artifacts": artifacts, "token": secret}
        parts: Any = [Received(from_document({"experiment": experiment})), None, None, [], SimpleNamespace(), None]
        return Running(*parts, since=0.0, number=1, journal=Journal(Metrics()))

    first, second = running("hunter-one"), running("hunter-two")
    second.settle(Decision.ACK)
    assert written(Style(form="text"), capsys, (logging.INFO, "it has hunter-one"))[0].endswith("it has ***")
    first.settle(Decision.ACK)


def test_an_experiment_may_want_to_be_told_more_and_never_hides_anything(capsys: pytest.CaptureFixture[str]) -> None:
    events = [(logging.DEBUG, "d"), (logging.INFO, "i"), (logging.WARNING, "w")]
    told = {
        verbose: "".join(line[-1] for line in written(Style(logging.INFO), capsys, *events, verbose=verbose))
        for verbose in (None, "debug", "error", "nonsense")
    }
    assert told == {None: "iw", "debug": "diw", "error": "iw", "nonsense": "iw"}


def test_a_runner_logs_json_if_it_is_told_to(tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "x.py").write_text("print('hello')")
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHONPATH": str(ROOT), "LOGXI": "*=DBG"}
    argv = [
        "run",
        "--log-format",
        "json",
        "--working-dir",
        tmp_path,
        "--output",
        tmp_path / "out",
        "--pythonver",
        "3.5",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "runner", *map(str, argv), str(tmp_path / "code" / "x.py")],
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    events = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
    assert events[0]["message"].startswith("studio-runner ")
    assert any(event.get("queue") == "run" and "no Python 3.5" in event["message"] for event in events)
