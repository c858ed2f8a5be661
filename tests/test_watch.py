"""What ends an attempt early, and what does not."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from runner.attempt.watch import Watch
from runner.errors import ExperimentError
from runner.lifecycle import Signals
from runner.loop import Loop

LATE, DEAD = ExperimentError("late"), ExperimentError("dead")


@pytest.fixture
def watch() -> Iterator[Watch]:
    reading, writing = os.pipe()
    with Signals() as signals, closing(Loop()) as loop:
        yield Watch(loop, signals, reading)
    os.close(reading)
    os.close(writing)


@pytest.mark.parametrize("jump", [-86400.0, 86400.0])
def test_a_clock_that_is_set_is_not_the_time_limit(jump: float, watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    """Machines that just started learn the time when experiments run already."""
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now)
    watch.limit(1.0, LATE)
    now += jump
    watch.check()
    with pytest.raises(ExperimentError, match="late"):
        watch.pause(30)


def test_the_end_of_its_life_is_a_matter_of_the_clock(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that slept meanwhile does not go on."""
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now)
    watch.limit(3600, LATE)
    watch.expire(now + 7200, DEAD)
    watch.check()
    now += 86400
    with pytest.raises(ExperimentError, match="dead"):
        watch.check()
