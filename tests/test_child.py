"""Both ends of the contract on real processes: the supervisor's Child, and the attempt that it starts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from runner import events
from runner.errors import MachineError
from runner.events import Event, Finished, Phase, Placed, Started
from runner.loop import Loop
from runner.order import GpuState
from runner.supervisor.child import Child
from tests.attempts import order

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def loop() -> Iterator[Loop]:
    with closing(Loop()) as made:
        yield made


@pytest.fixture
def child(loop: Loop) -> Iterator[Child]:
    made = Child(loop)
    yield made
    made.kill()
    made.close()
    made.wait(10)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root for all tests here, so that they share one virtual environment."""
    return tmp_path_factory.mktemp("home")


def serve(loop: Loop, done: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end
        loop.run_once(0.05)


def test_an_order_is_carried_out_and_its_events_are_told_in_order(
    loop: Loop, child: Child, home: Path, tmp_path: Path
) -> None:
    told: list[Event] = []
    numbers: dict[str, int] = {}

    def hear(event: Event) -> None:
        told.append(event)
        numbers[event.name if isinstance(event, Phase) else event.kind] = child.experiment

    child.tell = hear
    child.begin(order(home, tmp_path))
    serve(loop, lambda: child.ended() is not None)
    assert child.ended() == events.DONE
    assert numbers["started"] > 0
    assert numbers["return"] == 0, "whoever has that number now must not be killed with the attempt"
    assert child.finished == Finished("completed", "experiment 'k', attempt 1, completed", verdict="ok", exit_status=0)
    kinds = [type(event) for event in told]
    assert kinds[0] is Placed
    assert kinds[-1] is Finished
    assert Started in kinds
    phases = [event.name for event in told if isinstance(event, Phase)]
    assert list(dict.fromkeys(phases)) == ["fetch", "prepare", "run", "return"]
    assert child.place
    assert not (home / "experiments" / child.place).exists()
    assert (tmp_path / "store" / "output.tar").exists()


def test_a_failed_experiment_has_the_exit_status_of_one(loop: Loop, child: Child, home: Path, tmp_path: Path) -> None:
    child.begin(order(home, tmp_path, "raise SystemExit(9)"))
    serve(loop, lambda: child.ended() is not None)
    assert child.ended() == events.FAILED
    assert child.finished
    assert "exit status 9" in child.finished.sentence


def test_a_stopped_attempt_gives_back(loop: Loop, child: Child, home: Path, tmp_path: Path) -> None:
    child.begin(order(home, tmp_path, "import time; time.sleep(600)"))
    serve(loop, lambda: child.experiment)
    child.stop()
    serve(loop, lambda: child.ended() is not None)
    assert child.ended() == events.GIVE_BACK
    assert child.finished
    assert child.finished.outcome == "stopped"


def test_what_is_told_before_an_attempt_has_read_its_order_is_heard(
    loop: Loop, child: Child, home: Path, tmp_path: Path
) -> None:
    child.begin(order(home, tmp_path, "import time; time.sleep(600)"))
    child.tell_gpus(GpuState("card 0 is lost"))
    serve(loop, lambda: child.ended() is not None)
    assert child.finished
    assert (child.finished.outcome, child.finished.verdict) == ("stopped", "gpu")


def test_killing_ends_the_attempt_and_its_experiment(loop: Loop, child: Child, home: Path, tmp_path: Path) -> None:
    child.begin(order(home, tmp_path, "import time; time.sleep(600)"))
    serve(loop, lambda: child.experiment)
    child.kill()
    serve(loop, lambda: child.ended() is not None)
    assert child.ended() == -signal.SIGKILL
    assert child.finished is None
    serve(loop, lambda: not Path(f"/proc/{child.experiment}").exists())


def test_a_child_that_gets_no_order_ends_when_it_is_closed(loop: Loop) -> None:
    child = Child(loop)
    child.close()
    child.wait(30)
    assert not Path(f"/proc/{child.pid}").exists()


def test_the_attempts_process_does_not_know_the_runners_options(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMQP_URL", "amqp://user:s3cret@host")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3cret")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/runner/s3cret.json")
    monkeypatch.setenv("AWS_DATASET", "for messages")
    monkeypatch.setenv("HARMLESS", "here")
    child = Child(loop, keep=("AWS_DATASET",))
    environ = b""
    while not environ:  # for a moment after its start a process has none
        environ = Path(f"/proc/{child.pid}/environ").read_bytes()
    child.close()
    child.wait(30)
    assert b"HARMLESS=here" in environ
    assert b"AWS_DATASET=for messages" in environ
    assert b"s3cret" not in environ


class Attempt:
    """The attempt's process, driven by hand."""

    def __init__(self) -> None:
        reader, writer = os.pipe()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "runner", "attempt", str(writer)],
            stdin=subprocess.PIPE,
            pass_fds=(writer,),
            cwd=ROOT,
            stderr=subprocess.PIPE,
        )
        os.close(writer)
        self.events = os.fdopen(reader, "rb")

    def send(self, data: bytes) -> None:
        assert self.process.stdin
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def __enter__(self) -> Attempt:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()
        self.events.close()


def test_an_attempt_without_an_order_ends_quietly() -> None:
    with Attempt() as attempt:
        assert attempt.process.communicate(timeout=30)[1] == b""
        assert attempt.process.returncode == events.DONE
        assert attempt.events.read() == b""


def test_an_attempt_whose_supervisor_dies_stores_nothing_and_leaves_nothing(home: Path, tmp_path: Path) -> None:
    with Attempt() as attempt:
        attempt.send(order(home, tmp_path, "import time; time.sleep(600)").to_line())
        told = map(events.from_line, attempt.events)
        placed = next(event for event in told if isinstance(event, Placed))
        started = next(event for event in told if isinstance(event, Started))
        assert (home / "experiments" / placed.name).exists()
        attempt.process.communicate(timeout=30)
        assert attempt.process.returncode == events.GIVE_BACK
        assert not Path(f"/proc/{started.pid}").exists()
        assert not (tmp_path / "store" / "output.tar").exists()
        assert not (home / "experiments" / placed.name).exists()


@pytest.mark.parametrize("line", [b"nonsense\n", b"{}\n"])
def test_what_is_no_order_is_an_error_of_the_runner(line: bytes) -> None:
    with Attempt() as attempt:
        attempt.send(line)
        errors = attempt.process.communicate(timeout=30)[1]
        assert attempt.process.returncode == events.GIVE_BACK
        assert b"order cannot be read" in errors
        finished = events.from_line(attempt.events.readline())
        assert isinstance(finished, Finished)
        assert finished.outcome == "unavailable"


def test_a_large_order_arrives_whole(loop: Loop, child: Child, home: Path, tmp_path: Path) -> None:
    large = order(home, tmp_path, env_note="x" * 3_000_000)
    assert len(json.dumps(large.document)) > 3_000_000
    child.begin(large)
    serve(loop, lambda: child.ended() is not None)
    assert child.ended() == events.DONE


def test_a_process_that_cannot_be_started_is_the_machines_fault_and_leaks_nothing(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = set(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with pytest.raises(MachineError, match="cannot be started"):
        Child(loop)
    assert set(os.listdir("/proc/self/fd")) == before
