"""Who runs an experiment, and how it fared before, as the object beside its artifacts says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from runner.attempt import lease
from runner.attempt.lease import Elsewhere, Lease, Leasehold, Repeated, parse
from runner.attempt.watch import Watch
from runner.errors import RunnerError
from runner.lifecycle import Signals
from runner.loop import Loop
from runner.machine import procfs
from runner.message import request
from runner.retry import Patience
from runner.storage.base import StoreOptions
from runner.storage.stores import Stores
from tests.e2e.harness import until

HERE = f"{procfs.here()}/{procfs.birth(os.getpid())}"


class Bench:
    """A store that is a directory, and leaseholds of one experiment in it."""

    def __init__(self, root: Path, loop: Loop) -> None:
        self.root, self.loop = root, loop
        self.lost: list[RunnerError] = []
        self.later = 0.0
        self.stores = Stores(StoreOptions(file_roots=(str(root),), patience=Patience(0)), sleep=time.sleep)

    def wanted(self, **members: Any) -> request.Request:
        artifact = {
            "qualified": f"file://{self.root}/experiments/e/output.tar",
            "key": "experiments/e/output.tar",
            "mutable": True,
            "unpack": True,
        }
        experiment = {
            "key": "e",
            "filename": "main.py",
            "time_added": 1795444912.5,
            "artifacts": {"workspace": {**artifact, "mutable": False}, "output": artifact},
            **members,
        }
        return request.from_document({"experiment": experiment, "config": {}})

    def leave(self, hold: Leasehold, *, over: bool, failures: int, sentence: str) -> None:
        reading, writing = os.pipe()
        with Signals() as signals:
            hold.leave(Watch(self.loop, signals, reading), over=over, failures=failures, sentence=sentence)
            self.loop.remove_handler(signals.fd)
        self.loop.remove_handler(reading)
        os.close(reading)
        os.close(writing)

    def hold(self, **members: Any) -> Leasehold:
        stores = {"reading": self.stores, "writing": self.stores}
        return Leasehold(self.wanted(**members), self.loop, **stores, lost=self.lost.append, clock=self.clock)

    def clock(self) -> float:
        return time.time() + self.later

    @property
    def path(self) -> Path:
        return self.root / "experiments" / "e" / f"_lease-{self.wanted().identity[:16]}.json"

    def lease(self) -> Lease:
        found = parse(self.path.read_bytes(), self.wanted().identity)
        assert found
        return found

    def write(self, **members: Any) -> None:
        base = Lease(self.wanted().identity, "running", 1, 0, "elsewhere", "other-machine/7-7", time.time())
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(asdict(replace(base, **members))))

    def settled(self, hold: Leasehold) -> None:
        """Wait until it has written what it wanted to; the next time is far."""
        until(lambda: self.loop.run_once(0.05) or not hold._worker.busy, "the lease is written")

    def soon(self) -> None:
        until(lambda: self.loop.run_once(0.05) or self.path.exists(), "there is a lease")


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with closing(Loop()) as loop:
        yield Bench(tmp_path, loop)


def test_the_first_attempt_says_that_it_runs(bench: Bench) -> None:
    assert bench.hold().claim(failures=0, redeliveries=None) == 1
    bench.soon()
    said = bench.lease()
    assert (said.state, said.attempt, said.failures) == ("running", 1, 0)
    assert abs(said.heartbeat - time.time()) < 30
    assert len(bench.path.read_bytes()) < 1000


def test_an_attempt_says_again_and_again_that_it_runs(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "_PACE", 0.01)
    hold = bench.hold()
    hold.claim(failures=0, redeliveries=None)
    bench.soon()
    for _ in range(2):
        before, bench.later = bench.lease().heartbeat, bench.later + 10
        until(lambda before=before: bench.loop.run_once(0.05) or bench.lease().heartbeat > before + 5, "it beats")
    bench.leave(hold, over=False, failures=0, sentence="it was stopped")
    bench.later += 10
    for _ in range(20):
        bench.loop.run_once(0.01)
    assert bench.lease().state == "waiting", "who has left says nothing more"


def test_what_is_over_is_not_run_again(bench: Bench) -> None:
    hold = bench.hold()
    hold.claim(failures=0, redeliveries=None)
    bench.leave(hold, over=True, failures=0, sentence="it completed")
    with pytest.raises(Repeated, match="it was over already: it completed"):
        bench.hold().claim(failures=0, redeliveries=5)


def test_a_long_sentence_is_cut(bench: Bench) -> None:
    hold = bench.hold()
    hold.claim(failures=0, redeliveries=None)
    bench.leave(hold, over=True, failures=0, sentence="it " * 10_000)
    assert 500 < len(bench.path.read_bytes()) < 1000
    assert bench.lease().sentence.startswith("it it ")


@pytest.mark.parametrize("label", ["_metadata", "retval", "modeldir"])
def test_what_has_no_log_has_a_lease_beside_something_else_that_is_written(label: str, bench: Bench) -> None:
    written = {"qualified": f"file://{bench.root}/elsewhere/x.tar", "key": "elsewhere/x.tar", "mutable": True}
    code = {**written, "mutable": False, "unpack": True}
    bench.hold(artifacts={"workspace": code, label: {**written, "unpack": True}}).claim(failures=0, redeliveries=None)
    until(lambda: bench.loop.run_once(0.05) or list((bench.root / "elsewhere").glob("_lease-*.json")), "a lease")


def test_failures_are_those_of_the_lease_not_of_the_broker(bench: Bench) -> None:
    hold = bench.hold()
    hold.claim(failures=0, redeliveries=None)
    bench.leave(hold, over=False, failures=1, sentence="it failed")
    hold = bench.hold()
    assert hold.claim(failures=0, redeliveries=17) == 2
    bench.settled(hold)
    assert bench.lease().failures == 1, "which counts, should this attempt never say how it ended"
    assert bench.hold(key="other").claim(failures=0, redeliveries=2) == 3


def test_without_a_lease_the_brokers_count_stands_in(bench: Bench) -> None:
    assert bench.hold().claim(failures=0, redeliveries=2) == 3


def test_a_living_attempt_of_another_machine_is_respected_until_it_falls_silent(bench: Bench) -> None:
    bench.write(heartbeat=time.time() - 45)
    with pytest.raises(Elsewhere, match="attempt 1 runs on elsewhere"):
        bench.hold().claim(failures=0, redeliveries=None)
    bench.write(heartbeat=time.time() - 90)
    assert bench.hold().claim(failures=0, redeliveries=None) == 1


def test_on_the_same_machine_a_dead_attempt_is_known_at_once(bench: Bench) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        mark = f"{procfs.here()}/{procfs.birth(other.pid)}"
        bench.write(process=mark)
        with pytest.raises(Elsewhere):
            bench.hold().claim(failures=0, redeliveries=None)
        other.kill()
        other.wait()
    assert bench.hold().claim(failures=0, redeliveries=None) == 1


def test_another_submission_under_the_same_key_is_another_experiment(bench: Bench) -> None:
    hold = bench.hold()
    hold.claim(failures=0, redeliveries=None)
    bench.leave(hold, over=True, failures=0, sentence="it completed")
    assert bench.hold(time_added=1795444999.0).claim(failures=0, redeliveries=None) == 1


def test_an_attempt_that_was_taken_for_dead_gives_way(bench: Bench) -> None:
    """Its machine slept, the broker gave the message to somebody else, and it wakes up."""
    hold = bench.hold()
    hold.claim(failures=0, redeliveries=None)
    bench.settled(hold)
    bench.later = 120.0
    bench.write(attempt=2, heartbeat=bench.clock())
    hold._beat()
    until(lambda: bench.loop.run_once(0.05) or bench.lost, "it learns of the other")
    assert "attempt 2 runs on elsewhere" in str(bench.lost[0])
    assert bench.lease().process == "other-machine/7-7", "whose lease is left alone"


def test_an_attempt_that_was_silent_goes_on_when_nobody_else_runs(bench: Bench) -> None:
    hold = bench.hold()
    hold.claim(failures=0, redeliveries=None)
    bench.settled(hold)
    bench.later = 120.0
    bench.write(heartbeat=bench.clock() - 90)
    hold._beat()
    until(lambda: bench.loop.run_once(0.05) or bench.lease().process == HERE, "it says that it runs")
    assert bench.lease().heartbeat > time.time() + 60
    assert not bench.lost


def test_an_attempt_that_was_silent_does_not_take_itself_for_another(bench: Bench) -> None:
    hold = bench.hold()
    hold.claim(failures=0, redeliveries=None)
    bench.settled(hold)
    bench.later = 120.0
    hold._beat()
    until(lambda: bench.loop.run_once(0.05) or bench.lease().heartbeat > time.time() + 60, "it says that it runs")
    assert not bench.lost


def test_the_lease_of_another_submission_is_none(bench: Bench) -> None:
    bench.write()
    data = bench.path.read_bytes()
    assert parse(data, bench.wanted().identity)
    assert parse(data, "0" * 64) is None


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"[" * 60_000, b"\xff", b'{"identity": "x"}'])
def test_what_is_no_lease_is_none(data: bytes, bench: Bench) -> None:
    bench.write()
    bench.path.write_bytes(data)
    assert bench.hold().claim(failures=0, redeliveries=None) == 1


@pytest.mark.parametrize(
    "members",
    [
        {"attempt": -1},
        {"attempt": "1"},
        {"heartbeat": None},
        {"process": "x"},
        {"process": 5},
        {"failures": 1e99},
        {"failures": 10**4299},
    ],
)
def test_a_damaged_lease_is_none(members: dict[str, Any], bench: Bench) -> None:
    bench.write()
    document = {**json.loads(bench.path.read_bytes()), **members}
    found = parse(json.dumps(document).encode(), bench.wanted().identity)
    assert found is None


def test_an_experiment_without_a_time_of_submission_has_no_lease(bench: Bench) -> None:
    hold = bench.hold(time_added=None)
    assert hold.claim(failures=1, redeliveries=None) == 2
    bench.loop.run_once(0.1)
    assert not (bench.root / "experiments").exists()
