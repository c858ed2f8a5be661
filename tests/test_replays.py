"""Completed signed messages are remembered: for their lifetime, beyond a restart, and not without end."""

from __future__ import annotations

import logging
import math
import time
from pathlib import Path

import pytest

from runner.supervisor import replays
from runner.supervisor.replays import Replays


def test_what_was_completed_is_known_for_its_lifetime_to_every_runner_here(tmp_path: Path) -> None:
    memory = Replays(tmp_path / "completed")
    assert not memory.seen("a")
    memory.add("a", time.time() + 60)
    memory.add("for ever", math.inf)
    memory.add("over", time.time() - 1)
    for each in (memory, Replays(tmp_path / "completed")):
        assert each.seen("a")
        assert each.seen("for ever")
        assert not each.seen("over")
        assert not each.seen("b")


def test_what_is_over_is_forgotten_and_so_is_what_is_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replays, "_MOST", 3)
    memory, now = Replays(tmp_path / "completed"), time.time()
    for seconds in (50, 40, 30, 20, 10):
        memory.add(str(seconds), now + seconds)
    memory.tidy(now)
    assert sorted(path.name for path in (tmp_path / "completed").iterdir()) == ["30", "40", "50"]
    memory.tidy(now + 35)
    assert sorted(path.name for path in (tmp_path / "completed").iterdir()) == ["40", "50"]


def test_a_disk_that_takes_nothing_is_told_and_stops_nobody(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "completed").write_text("in the way")
    memory = Replays(tmp_path / "completed")
    with caplog.at_level(logging.WARNING):
        memory.add("a", time.time() + 60)
    assert "a copy of a completed message may run" in caplog.text
    assert not memory.seen("a")
