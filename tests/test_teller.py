"""What an attempt tells never waits for the supervisor; lines too many are counted, other events all arrive."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from runner import events
from runner.attempt.teller import Teller
from runner.events import Event, Line, Phase
from runner.loop import Loop


@pytest.fixture
def loop() -> Iterator[Loop]:
    with closing(Loop()) as made:
        yield made


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


def arrived(data: bytes) -> list[Event]:
    return [events.from_line(line) for line in data.splitlines()]


def test_nothing_waits_for_a_reader_and_everything_arrives_when_there_is_one(loop: Loop, pipe: tuple[int, int]) -> None:
    teller = Teller(pipe[1], loop, clock=lambda: 0.0)
    began = time.monotonic()
    for number in range(1000):
        teller.line(f"{number} " + "x" * 500, error=False, document=False)
    teller.tell(Phase("run"))
    assert time.monotonic() - began < 20  # it would be for ever
    received = bytearray()

    def read() -> None:
        while b'"run"' not in received:
            received.extend(os.read(pipe[0], 65536))

    reader = threading.Thread(target=read)
    reader.start()
    while reader.is_alive():
        loop.run_once(0.05)
    found = arrived(bytes(received))
    assert [event.text.split()[0] for event in found[:-1] if isinstance(event, Line)] == list(map(str, range(1000)))
    assert found[-1] == Phase("run")


def test_a_flood_of_lines_is_cut_to_a_rate_and_the_rest_counted(loop: Loop, pipe: tuple[int, int]) -> None:
    now = 0.0
    teller = Teller(pipe[1], loop, clock=lambda: now)
    for _ in range(5000):
        teller.line("x", error=False, document=False)
    now = 1.0
    teller.line("after", error=True, document=False)
    os.set_blocking(pipe[0], False)
    received = bytearray()
    end = time.monotonic() + 10
    while b"after" not in received and time.monotonic() < end:
        loop.run_once(0.01)
        try:
            received += os.read(pipe[0], 65536)
        except BlockingIOError:
            continue
    found = arrived(bytes(received))
    assert len(found) == 2001
    assert found[-1] == Line("after", error=True, document=False, dropped=3000)


def test_a_supervisor_that_is_gone_is_no_error(loop: Loop) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    teller = Teller(writing, loop)
    teller.tell(Phase("run"))
    teller.flush()
    os.close(writing)
