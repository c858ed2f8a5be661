"""What becomes of a message (protocol section 8)."""

from __future__ import annotations

import pytest

from runner.events import Finished
from runner.queues.settle import Decision, Ledger, decide, settle


@pytest.mark.parametrize(
    ("verdict", "last", "decision"),
    [
        ("completed", False, Decision.ACK),
        ("cancelled", False, Decision.ACK),
        ("repeated", False, Decision.ACK),
        ("failed", False, Decision.GIVE_BACK),
        ("failed", True, Decision.REFUSE),
        ("misfit", True, Decision.GIVE_BACK),
        ("unavailable", True, Decision.GIVE_BACK),
        ("stopped", True, Decision.GIVE_BACK),
        ("elsewhere", True, Decision.GIVE_BACK),
    ],
)
def test_only_a_decided_fate_is_acknowledged(verdict: str, last: bool, decision: Decision) -> None:
    assert decide(Finished(verdict, "", last)) is decision


class Told:
    """A delivery that remembers what it was told."""

    queue, body, redelivered, redeliveries, lost, window = "local_q", b"", False, None, False, None

    def __init__(self) -> None:
        self.told: list[str] = []

    def ack(self) -> None:
        self.told.append("ack")

    def give_back(self) -> None:
        self.told.append("give_back")

    def refuse(self) -> None:
        self.told.append("refuse")

    def keep_alive(self) -> None:
        self.told.append("keep_alive")


@pytest.mark.parametrize(
    ("decision", "told"), [(Decision.ACK, "ack"), (Decision.REFUSE, "refuse"), (Decision.GIVE_BACK, "give_back")]
)
def test_a_decision_is_told_to_the_broker_as_it_is(decision: Decision, told: str) -> None:
    delivery = Told()
    settle(delivery, decision)
    assert delivery.told == [told]


def test_failures_are_counted_until_it_is_over() -> None:
    ledger = Ledger()
    ledger.failed("a")
    ledger.failed("a")
    assert (ledger.failures("a"), ledger.failures("b")) == (2, 0)
    ledger.over("a")
    assert ledger.failures("a") == 0


def test_a_broker_that_could_not_be_told_is_told_once() -> None:
    ledger = Ledger()
    ledger.over("told")
    ledger.over("owed", unacknowledged=True)
    assert not ledger.forgive("told")
    assert ledger.forgive("owed")
    assert not ledger.forgive("owed")


def test_memory_is_bounded() -> None:
    ledger = Ledger(size=2)
    for name in ("a", "b", "c"):
        ledger.failed(name)
        ledger.over(f"over {name}", unacknowledged=True)
    assert (ledger.failures("a"), ledger.failures("c")) == (0, 1)
    assert not ledger.forgive("over a")
    assert ledger.forgive("over c")


def test_what_failed_longest_ago_is_forgotten_first() -> None:
    ledger = Ledger(size=2)
    for name in ("again", "once", "again", "new"):
        ledger.failed(name)
    assert [ledger.failures(name) for name in ("again", "once", "new")] == [2, 0, 1]
