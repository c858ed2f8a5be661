"""Which queue is asked: that which has used the machine least, and not while its first message cannot run here."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from runner.commands.explain import main as explain
from runner.machine.allocate import Allocation, Allocator, Need, Resources
from runner.machine.gpus import Card, Wish
from runner.queues.base import Delivery
from runner.supervisor.admission import Queues
from runner.supervisor.reasons import Reasons, runners
from tests.loops import Clock

ONE = Need(1, 0, 0)


class Names:
    """A QueueServer of which only the names matter."""

    kind = "local"

    def __init__(self, *names: str) -> None:
        self.names = list(names)
        self.resting: list[str] = []

    def queues(self) -> list[str]:
        return self.names

    def others(self) -> list[str]:
        return []

    def deleted(self, queue: str) -> bool:
        return queue not in self.names

    def take(self, queue: str) -> Delivery | None:
        return None

    def rest(self, queue: str) -> None:
        self.resting.append(queue)

    def publish(self, queue: str, body: bytes) -> bool:
        return False

    def close(self) -> None:
        self.names = []


class Machine:
    """Queues that compete for a machine, and their clock."""

    def __init__(self, home: Path, cores: int, *names: str) -> None:
        self.clock, self.server = Clock(), Names(*names)
        self.allocator = Allocator(Resources(cores, 8, 8))
        self.reasons = Reasons(home, {})
        self.queues = Queues([self.server], self.allocator, self.clock, self.reasons)
        self.held: list[Allocation] = []

    def order(self) -> list[str]:
        return [name for _, name in self.queues.rota()]

    def start(self, queue: str, need: Need = ONE) -> None:
        self.held.append(self.allocator.reserve(need))
        self.queues.started(queue, need)

    def end(self, queue: str, need: Need = ONE) -> None:
        over = next(each for each in self.held if each.need == need)
        self.held.remove(over)
        self.allocator.release(over)
        self.queues.ended(queue, need, well=True)

    def share(self, seconds: float, **lasting: int) -> dict[str, int]:
        """Let queues that never run dry compete; ``lasting`` says how long each one's experiments take."""
        started = dict.fromkeys(lasting, 0)
        running: list[tuple[float, str]] = []
        end = self.clock.now + seconds
        while self.clock.now < end:
            for due, queue in [each for each in running if each[0] <= self.clock.now]:
                running.remove((due, queue))
                self.end(queue)
            while self.allocator.free.cpus:
                queue = next(name for name in self.order() if self.queues.may_ask(name))
                self.start(queue)
                started[queue] += 1
                running.append((self.clock.now + lasting[queue], queue))
            self.clock.now += 1
        return started


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path, 4, "a", "b", "c")


def test_the_queue_that_has_used_least_is_asked_first(machine: Machine) -> None:
    assert sorted(machine.order()) == ["a", "b", "c"]
    machine.start("a")
    machine.start("b", Need(2, 0, 0))
    machine.clock.now += 10
    assert machine.order() == ["c", "a", "b"]
    machine.end("b", Need(2, 0, 0))
    machine.clock.now += 15
    assert machine.order() == ["c", "b", "a"]


def test_what_was_used_long_ago_counts_no_more(machine: Machine) -> None:
    machine.start("a")
    machine.clock.now += 1000
    machine.end("a")
    machine.clock.now += 36000
    machine.start("b")
    machine.clock.now += 10
    assert machine.order()[-1] == "b"


def test_queues_of_short_and_of_long_experiments_get_equal_time(tmp_path: Path) -> None:
    machine = Machine(tmp_path, 2, "short", "long")
    started = machine.share(36000, short=10, long=1000)
    assert 0.8 < (started["short"] * 10) / (started["long"] * 1000) < 1.25


def test_a_queue_that_begins_to_listen_is_waited_for_by_one_that_has_used_more(machine: Machine) -> None:
    machine.start("a", Need(3, 0, 0))
    machine.clock.now += 10
    machine.order()
    machine.queues.asked("b", took=False)
    assert not machine.queues.may_ask("a"), "the last core is for b, if it wants it"
    machine.clock.now += 0.1
    assert machine.queues.may_ask("a"), "b has had its chance"


def test_no_core_is_kept_for_who_begins_to_listen_while_there_are_enough(machine: Machine) -> None:
    machine.start("a")
    machine.clock.now += 10
    machine.order()
    machine.queues.asked("b", took=False)
    assert machine.queues.may_ask("a")


def test_a_full_machine_asks_nobody_but_for_what_it_runs_already(machine: Machine) -> None:
    machine.start("a", Need(4, 0, 0))
    assert not machine.queues.may_ask("b")
    assert machine.queues.may_ask("b", adopting=True)


def test_other_messages_of_a_queue_that_one_is_expected_from_do_not_go_round_in_a_circle(machine: Machine) -> None:
    """Brokers count how often a message comes, and some bury it in the end."""
    machine.start("a", Need(4, 0, 0))
    taken = 0
    for _ in range(600):
        machine.clock.now += 0.1
        if machine.queues.may_ask("a", adopting=True):
            taken += 1
            machine.queues.hold("a", ONE)
    assert 5 < taken < 15


def test_a_misfit_pauses_its_queue_longer_each_time_and_no_other(machine: Machine) -> None:
    waits = []
    for _ in range(12):
        machine.queues.pause("a", "it does not fit")
        assert not machine.queues.may_ask("a")
        assert machine.queues.may_ask("b")
        since = machine.clock.now
        while not machine.queues.may_ask("a"):
            machine.clock.now += 0.1
        waits.append(machine.clock.now - since)
    assert waits[0] < 2
    assert waits[2] > waits[0]
    assert 40 < waits[-1] < 80


def test_work_that_is_done_ends_the_growing_of_pauses(machine: Machine) -> None:
    for _ in range(8):
        machine.queues.pause("a", "it does not fit")
    machine.start("a")
    machine.end("a")
    machine.clock.now += 100
    machine.queues.pause("a", "it does not fit")
    machine.clock.now += 1.3
    assert machine.queues.may_ask("a")


def test_a_held_queue_is_asked_again_as_soon_as_its_message_fits(machine: Machine) -> None:
    machine.start("b", Need(3, 1, 1))
    machine.queues.hold("a", Need(2, 1, 1))
    assert not machine.queues.may_ask("a")
    machine.end("b", Need(3, 1, 1))
    assert machine.queues.may_ask("a")


def test_a_held_queue_is_asked_again_after_a_while_anyway(machine: Machine) -> None:
    machine.start("b", Need(3, 1, 1))
    machine.queues.hold("a", Need(2, 1, 1))
    machine.clock.now += 29
    assert not machine.queues.may_ask("a")
    machine.clock.now += 2
    assert machine.queues.may_ask("a")


def test_a_large_experiment_is_not_starved_by_small_ones(machine: Machine) -> None:
    machine.order()
    machine.start("b")
    machine.clock.now += 10
    machine.queues.hold("a", Need(4, 1, 1))
    assert machine.queues.may_ask("b"), "it may only be for a moment"
    machine.clock.now += 61
    machine.queues.hold("a", Need(4, 1, 1))
    assert not machine.queues.may_ask("b"), "the machine is kept free for the large one"
    machine.clock.now += 301
    assert machine.queues.may_ask("b"), "but not for ever"


def test_who_waits_long_for_gpus_gets_those_kept_free_and_not_the_machine(machine: Machine) -> None:
    machine.allocator.gpus.renew([Card("x", "GPU 0", 16, 16), Card("y", "GPU 1", 16, 16)])
    machine.order()
    one, both = Need(1, 0, 0, Wish(16)), Need(1, 0, 0, Wish(16, count=2))
    machine.start("b", one)
    machine.clock.now += 10
    machine.queues.hold("a", both)
    assert machine.queues.fits("b", one), "it may only be for a moment"
    machine.clock.now += 61
    machine.queues.hold("a", both)
    assert machine.queues.may_ask("b"), "its next experiment may want no GPU"
    assert machine.queues.fits("b", ONE)
    assert not machine.queues.fits("b", one)
    machine.queues.hold("b", one)
    assert not machine.queues.may_ask("b"), "or its message would come again at once"
    machine.end("b", one)
    assert machine.queues.fits("a", both)


def test_all_queues_can_be_rested(machine: Machine) -> None:
    machine.queues.rest_all()
    assert machine.server.resting == ["a", "b", "c"]


# Why not


def told(home: Path) -> dict[str, Any]:
    (found,) = runners(home)
    return dict(found["queues"])


def test_the_reason_is_told_once_until_it_changes(
    machine: Machine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    machine.order()
    machine.start("b", Need(3, 0, 0))
    for _ in range(3):
        machine.queues.hold("a", Need(2, 1, 1))
        machine.clock.now += 31
    assert caplog.text.count("queue a") == 1
    assert "it needs 2 cpus, and 1 are free" in caplog.text
    for _ in range(3):
        machine.queues.pause("a", "experiment 'x' needs Python 3.6, and there is none")
    assert caplog.text.count("Python 3.6") == 1
    machine.reasons.save()
    assert (tmp_path / "runners").stat().st_mode & 0o077 == 0, "experiments of another user do not read it"
    assert told(tmp_path)["a"].startswith("experiment 'x' needs Python 3.6, and there is none; it is left to others")
    assert told(tmp_path)["b"] == ""


def test_a_reason_ends_with_the_start_of_an_experiment(machine: Machine, tmp_path: Path) -> None:
    machine.order()
    machine.queues.pause("a", "it does not fit")
    machine.start("a")
    machine.reasons.save()
    assert told(tmp_path)["a"] == ""


def test_a_reason_ends_when_the_queue_is_found_empty(machine: Machine, tmp_path: Path) -> None:
    machine.order()
    machine.queues.pause("a", "it does not fit")
    machine.queues.asked("a", took=False)
    machine.clock.now += 1
    machine.queues.asked("a", took=False)
    machine.reasons.save()
    assert told(tmp_path)["a"] == ""


def test_what_a_server_said_does_nothing_to_the_terminal_of_who_asks_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reasons = Reasons(tmp_path / "studio-runner", {"idle": "", "running": [], "free": "3 cpus"})
    (tmp_path / "studio-runner").mkdir()
    reasons.known({"q"})
    reasons.tell("q", "a package index does not answer as it should: \x1b]0;evil\x07")
    reasons.save()
    assert explain(["--working-dir", str(tmp_path), "q"]) == 1
    assert capsys.readouterr().out.endswith("as it should: \\x1b]0;evil\\x07\n")


def test_the_reasons_of_a_runner_that_died_are_not_told(machine: Machine, tmp_path: Path) -> None:
    machine.reasons.save()
    (path,) = (tmp_path / "runners").glob("*.json")
    (tmp_path / "runners" / "1-1.json").write_text(json.dumps({"queues": {}}))
    assert [each["process"] for each in runners(tmp_path)] == [path.stem.partition("-")[0]]
    machine.reasons.close()
    assert list(runners(tmp_path)) == []
