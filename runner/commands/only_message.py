"""A queue server that has one message: what ``run`` gives to a supervisor that is otherwise like any other."""

from __future__ import annotations

from collections.abc import Collection

from runner.queues.base import Refreshed

QUEUE = "run"
"""The name of its one queue."""


class OnlyMessage:
    """See QueueServer and Delivery, of which it is both. ``fate`` is what became of the message, "" while that is open.

    It is ``acknowledged`` (completed, cancelled, or over before), ``refused`` (it failed) or ``given back``.
    ``outcome`` is what the journal has of it in the end (see Finished), "" where this machine cannot run it.
    """

    kind = "run"
    queue = QUEUE
    redeliveries: int | None = None
    redelivered = False
    lost = False
    window: float | None = None

    def __init__(self, body: bytes) -> None:
        self.body = body
        self.fate = ""
        self.outcome = ""
        self._taken = False

    def settled(self) -> bool:
        """True when there is nothing left to do."""
        return bool(self.fate)

    # The server

    def queues(self) -> Collection[str]:
        """Name the one queue."""
        return [QUEUE]

    def others(self) -> Collection[str]:
        """There are none."""
        return []

    def refreshed(self) -> Collection[Refreshed]:
        """Nothing is searched for."""
        return []

    def deleted(self, queue: str) -> bool:
        """It cannot be deleted."""
        return False

    def take(self, queue: str) -> OnlyMessage | None:
        """Return the message, once."""
        if self._taken:
            return None
        self._taken = True
        return self

    def rest(self, queue: str) -> None:
        """Nothing comes by itself."""

    def publish(self, queue: str, body: bytes) -> bool:
        """Take nothing: nobody would read it."""
        return False

    def close(self) -> None:
        """Hold nothing."""

    # The delivery

    def ack(self) -> None:
        """The experiment is done."""
        self.fate = "acknowledged"

    def refuse(self) -> None:
        """It failed, or cannot be run anywhere."""
        self.fate = "refused"

    def give_back(self) -> None:
        """It did not run to its end here."""
        self.fate = "given back"

    def keep_alive(self) -> None:
        """Nobody waits for it."""
