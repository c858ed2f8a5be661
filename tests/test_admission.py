"""Which queue is asked: in turn, and not while its first message cannot run here."""

from __future__ import annotations

from runner.admission import Queues
from runner.machine.allocate import Allocator, Resources
from runner.queues.base import Delivery
from runner.settle import Decision


class Names:
    """A QueueServer of which only the names matter."""

    kind = "local"

    def __init__(self, *names: str) -> None:
        self.names = list(names)
        self.resting: list[str] = []

    def queues(self) -> list[str]:
        return self.names

    def take(self, queue: str) -> Delivery | None:
        return None

    def rest(self, queue: str) -> None:
        self.resting.append(queue)

    def close(self) -> None:
        self.names = []


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


ROOMY = Allocator(Resources(8, 8, 8))


def test_every_queue_is_first_in_its_turn() -> None:
    queues = Queues([Names("a", "b"), Names("c")], Clock())
    firsts = {next(queues.rota())[1] for _ in range(3)}
    assert firsts == {"a", "b", "c"}
    assert sorted(name for _, name in queues.rota()) == ["a", "b", "c"]


def test_a_misfit_pauses_its_queue_longer_each_time_and_no_other() -> None:
    clock = Clock()
    queues = Queues([Names("a", "b")], clock)
    waits = []
    for _ in range(12):
        queues.misfit("a")
        assert not queues.may_ask("a", ROOMY)
        assert queues.may_ask("b", ROOMY)
        since = clock.now
        while not queues.may_ask("a", ROOMY):
            clock.now += 0.1
        waits.append(clock.now - since)
    assert waits[0] < 2
    assert waits[2] > waits[0]
    assert 40 < waits[-1] < 80


def test_work_that_is_done_ends_the_growing_of_pauses() -> None:
    clock = Clock()
    queues = Queues([Names("a")], clock)
    for _ in range(8):
        queues.misfit("a")
    queues.after("a", "completed", Decision.ACK)
    clock.now += 100
    queues.misfit("a")
    clock.now += 1.3
    assert queues.may_ask("a", ROOMY)


def test_a_held_queue_is_asked_again_as_soon_as_its_message_fits() -> None:
    clock = Clock()
    queues, allocator = Queues([Names("a")], clock), Allocator(Resources(2, 2, 2))
    allocator.reserve(Resources(1, 1, 1))
    queues.hold("a", Resources(2, 1, 1))
    assert not queues.may_ask("a", allocator)
    allocator.release(Resources(1, 1, 1))
    assert queues.may_ask("a", allocator)


def test_a_held_queue_is_asked_again_after_a_while_anyway() -> None:
    clock = Clock()
    queues, full = Queues([Names("a")], clock), Allocator(Resources())
    queues.hold("a", Resources(2, 1, 1))
    clock.now += 29
    assert not queues.may_ask("a", full)
    clock.now += 2
    assert queues.may_ask("a", full)


def test_all_queues_can_be_rested() -> None:
    server = Names("a", "b")
    Queues([server], Clock()).rest_all()
    assert server.resting == ["a", "b"]
