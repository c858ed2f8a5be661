"""What becomes of a message after an attempt (protocol section 8), and the memory that this takes."""

from __future__ import annotations

from collections import OrderedDict
from enum import Enum

from runner.events import Finished
from runner.queues.base import Delivery

# How many experiments are remembered. Each costs some hundred bytes.
_REMEMBERED = 10_000


class Decision(Enum):
    """What is done with a message; the value says it in the log."""

    ACK = "acknowledged"
    REFUSE = "not tried again"
    GIVE_BACK = "given back"


def decide(finished: Finished) -> Decision:
    """Decide by how the attempt ended."""
    if finished.outcome in ("completed", "cancelled", "repeated"):
        return Decision.ACK
    if finished.outcome == "failed" and finished.last:
        return Decision.REFUSE
    return Decision.GIVE_BACK


def settle(delivery: Delivery, decision: Decision) -> None:
    """Do it."""
    actions = {Decision.ACK: delivery.ack, Decision.REFUSE: delivery.refuse, Decision.GIVE_BACK: delivery.give_back}
    actions[decision]()


class Ledger:
    """Remembers, for the experiments seen last, how often they failed here, and whose broker is owed an ack."""

    def __init__(self, size: int = _REMEMBERED) -> None:
        self._size = size
        self._failures: OrderedDict[str, int] = OrderedDict()
        self._owed: OrderedDict[str, None] = OrderedDict()

    def failed(self, identity: str) -> None:
        """Count a failure that was the experiment's own."""
        self._failures[identity] = self.failures(identity) + 1
        self._failures.move_to_end(identity)
        if len(self._failures) > self._size:
            self._failures.popitem(last=False)

    def failures(self, identity: str) -> int:
        """Return how often it has failed here."""
        return self._failures.get(identity, 0)

    def over(self, identity: str, *, unacknowledged: bool = False) -> None:
        """The experiment is over. ``unacknowledged``: its broker could not be told, and will send it again."""
        self._failures.pop(identity, None)
        if unacknowledged:
            self._owed[identity] = None
            if len(self._owed) > self._size:
                self._owed.popitem(last=False)

    def forgive(self, identity: str) -> bool:
        """True, once, when the experiment is over but its broker could not be told."""
        return self._owed.pop(identity, False) is None
