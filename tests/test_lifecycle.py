"""Signals are recorded and wake the loop; limits end the runner."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys

from runner.lifecycle import Limits, Signals


def test_stop_signals_are_counted_and_wake_a_selector() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Signals() as signals:
        assert not select.select([signals.fd], [], [], 0)[0]
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        assert select.select([signals.fd], [], [], 5)[0]
        signals.drain()
        assert not select.select([signals.fd], [], [], 0)[0]
        assert signals.stops == 2
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_terminal_that_is_closed_stops_it_unless_nohup_was_given() -> None:
    text = "import os, signal; from runner.lifecycle import Signals\nwith Signals() as s: os.kill(os.getpid(), 1)"
    argv = [sys.executable, "-c", f"{text}\nprint(s.stops)"]
    assert subprocess.run(argv, capture_output=True, check=True).stdout == b"1\n"
    assert subprocess.run(["nohup", *argv], capture_output=True, check=True).stdout == b"0\n"


def test_the_end_of_a_child_wakes_a_selector() -> None:
    with Signals() as signals:
        child = subprocess.Popen([sys.executable, "-c", ""])
        assert select.select([signals.fd], [], [], 30)[0]
        assert child.wait() == 0
        assert signals.stops == 0


def test_without_limits_nothing_ends() -> None:
    limits = Limits(tasks=0, idle=0, interval=0, now=0)
    assert limits.reached(running=0, now=1e9) == ""
    assert not limits.enough(1e9)


def test_a_number_of_tasks_ends_it_when_the_last_is_done() -> None:
    limits = Limits(tasks=2, idle=0, interval=0, now=0)
    limits.started = 2
    assert limits.enough(0)
    assert limits.reached(running=1, now=1) == ""
    assert "--limit-tasks 2" in limits.reached(running=0, now=2)


def test_a_time_without_work_ends_it() -> None:
    limits = Limits(tasks=0, idle=10, interval=0, now=0)
    assert limits.reached(running=1, now=100) == ""
    assert limits.reached(running=0, now=109) == ""
    assert "--limit-idle-duration" in limits.reached(running=0, now=110)


def test_after_a_time_no_more_work_is_taken_and_what_runs_is_finished() -> None:
    limits = Limits(tasks=0, idle=0, interval=60, now=100)
    assert not limits.enough(159)
    assert limits.enough(160) == "--limit-interval 1m is over"
    assert limits.reached(running=1, now=500) == ""
    assert limits.reached(running=0, now=501) == "--limit-interval 1m is over"
