"""What takes long is told: in lines, ten seconds apart, or as a bar."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from runner.artifacts.progress import Progress
from runner.attempt.console import Console
from runner.attempt.remarks import Remarks
from runner.events import Advanced
from runner.loop import Loop
from runner.storage.files import FileStore
from tests.loops import Clock

MIB = 1024 * 1024


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def loop(clock: Clock) -> Iterator[Loop]:
    with closing(Loop(clock)) as made:
        yield made


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    (tmp_path / "object").write_bytes(bytes(4 * MIB))
    return FileStore(str(tmp_path), [str(tmp_path)])


def test_a_long_transfer_is_told_every_ten_seconds_and_a_short_one_not_at_all(
    clock: Clock, loop: Loop, store: FileStore
) -> None:
    told: list[str] = []
    watched = Progress(loop, told.append, clock=clock).watched(store, "fetching artifact 'data'")
    with watched.open("object") as stored:
        for _ in range(4):
            stored.stream.read(MIB)
            clock.now += 4
            stored.stream.read(0)
    loop.run_once(0)
    assert told == ["fetching artifact 'data': 3 MiB of 4 MiB (75 %), 256 KiB/s, 4s left"]
    with watched.open("object") as stored:
        stored.stream.read()
    loop.run_once(0)
    assert len(told) == 1


def test_what_is_stored_is_told_without_its_size_which_nobody_knows(
    clock: Clock, loop: Loop, store: FileStore, tmp_path: Path
) -> None:
    told: list[str] = []
    with Progress(loop, told.append, clock=clock).watched(store, "storing artifact 'model'").create("new") as out:
        out.write(bytes(MIB))
        clock.now += 10
        out.write(bytes(MIB))
    loop.run_once(0)
    assert told == ["storing artifact 'model': 2 MiB, 205 KiB/s"]
    assert (tmp_path / "new").stat().st_size == 2 * MIB


def test_waiting_is_told_for_as_long_as_it_lasts(clock: Clock, loop: Loop) -> None:
    told: list[str] = []
    with Progress(loop, told.append, clock=clock).waiting("preparing the environment"):
        for _ in range(5):
            clock.now += 5
            loop.run_once(0)
    clock.now += 60
    loop.run_once(0)
    assert told == ["preparing the environment: 10s so far", "preparing the environment: 20s so far"]


def test_a_bar_is_drawn_where_somebody_looks_and_wiped_out_at_the_end(
    clock: Clock, loop: Loop, store: FileStore
) -> None:
    reader, writer = os.pipe()
    progress = Progress(loop, lambda _: None, bar=writer, clock=clock)
    with progress.watched(store, "fetching").open("object") as stored:
        clock.now += 1
        stored.stream.read(2 * MIB)
    os.close(writer)
    text = os.read(reader, 4096).decode()
    os.close(reader)
    assert "\r\x1b[Kfetching [############            ] 2 MiB of 4 MiB (50 %), 2 MiB/s, 1s left" in text
    assert text.endswith("\r\x1b[K")


@pytest.mark.parametrize(
    ("verbose", "wanted"),
    [(None, []), ("error", []), ("info", ["an event"]), ("debug", ["a detail", "an event"])],
)
def test_the_experiments_log_has_progress_and_the_events_that_its_message_wants(
    loop: Loop, tmp_path: Path, verbose: str | None, wanted: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "runner")
    events: list[Advanced] = []
    remarks = Remarks(loop, events.append, verbose, looking=False)
    with Console(tmp_path / "output", lambda *_: None) as console, remarks.into(console):
        remarks.advanced("half of it is there")
        remarks.detail("a detail")
        logging.getLogger("runner.artifacts.cache").info("an event")
        loop.run_once(0)
    logging.getLogger("runner.artifacts.cache").error("too late")
    assert events == [Advanced("half of it is there")]
    lines = ["half of it is there", *wanted]
    assert (tmp_path / "output").read_text().splitlines() == [f"studio-runner: {line}" for line in lines]
