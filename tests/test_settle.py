"""What becomes of a message (protocol section 8)."""

from __future__ import annotations

import pytest

from runner.events import Finished
from runner.queues.settle import Decision, Ledger, decide


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
