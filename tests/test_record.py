"""The client's own record of an experiment, which anybody who can write to its bucket may have spoilt."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from runner.attempt.record import Bookkeeping, Record
from runner.attempt.watch import Watch
from runner.lifecycle import Signals
from runner.loop import Loop
from runner.message.request_artifacts import Record as Where
from runner.retry import Patience
from runner.storage.base import AwsCredentials, StoreOptions, locate
from runner.storage.stores import Stores
from tests.loops import served


@pytest.fixture
def loop() -> Iterator[Loop]:
    with closing(Loop()) as loop:
        yield loop


@pytest.fixture
def watch(loop: Loop) -> Iterator[Watch]:
    reading, writing = os.pipe()
    with Signals() as signals:
        yield Watch(loop, signals, reading)
    os.close(reading)
    os.close(writing)


def record_of(root: Path) -> tuple[Where, Stores]:
    stores = Stores(StoreOptions(file_roots=(str(root),), patience=Patience(0)), sleep=time.sleep)
    return Where(locate(f"file://{root}/record"), None), stores


@pytest.mark.parametrize("data", [b"", b"[]", b"\xff", b"[" * 200_000])
def test_what_is_no_record_is_none_and_is_left_alone(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "record").write_bytes(data)
    record = Record(*record_of(tmp_path))
    assert record.status() == ""
    assert record.update("running") == ""
    assert (tmp_path / "record").read_bytes() == data


def test_an_experiment_that_was_stopped_while_it_waited_is_known_to_be_before_it_runs(
    tmp_path: Path, loop: Loop
) -> None:
    record = {"key": "demo", "status": "stopped"}
    (tmp_path / "record").write_text(json.dumps(record))
    stopped: list[bool] = []
    book = Bookkeeping(*record_of(tmp_path), loop, stopped=lambda: stopped.append(True))
    book.begin()
    assert served(loop, lambda: stopped)
    book.end()
    assert json.loads((tmp_path / "record").read_text()) == record


def test_a_record_keeps_what_its_client_wrote_and_gets_what_happened(tmp_path: Path) -> None:
    theirs = {"key": "demo", "status": "waiting", "metric": None, "artifacts": {"output": {"key": "k"}}}
    (tmp_path / "record").write_text(json.dumps(theirs))
    record = Record(*record_of(tmp_path))
    for status, time_of in (
        ("running", "time_started"),
        ("running", "time_last_checkpoint"),
        ("finished", "time_finished"),
    ):
        record.update(status, **{time_of: 1795444899.5})
    times = dict.fromkeys(("time_started", "time_last_checkpoint", "time_finished"), 1795444899.5)
    assert json.loads((tmp_path / "record").read_text()) == {**theirs, "status": "finished", **times}


def test_the_last_word_has_all_that_was_noted_before(tmp_path: Path, loop: Loop, watch: Watch) -> None:
    (tmp_path / "record").write_text(json.dumps({"key": "demo", "status": "waiting"}))
    book = Bookkeeping(*record_of(tmp_path), loop, stopped=print)
    book.begin()
    book.note("running", time_started=1.0)
    book.end()
    book.settle(watch, "finished", time_finished=2.0)
    told = json.loads((tmp_path / "record").read_text())
    assert told == {"key": "demo", "status": "finished", "time_started": 1.0, "time_finished": 2.0}


def test_a_database_that_only_the_client_can_reach_holds_no_attempt(loop: Loop, watch: Watch) -> None:
    """Its address is often one of the client's own machine or network."""
    where = Where(locate("s3://127.0.0.1:1/b/experiments/k"), AwsCredentials("a", "b"))
    brief, lasting = (Stores(StoreOptions(patience=Patience(each)), sleep=time.sleep) for each in (0.2, 600.0))
    book = Bookkeeping(where, brief, loop, stopped=print, lasting=lasting)
    began = time.monotonic()
    book.begin()
    for number in range(100):
        book.note("running", time_last_checkpoint=float(number))
    book.end()
    book.settle(watch, "finished")
    assert time.monotonic() - began < 60
