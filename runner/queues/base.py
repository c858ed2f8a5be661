"""What a queue server is to the supervisor's loop. Nothing here ever blocks."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Refreshed:
    """How often the list of an account's or a broker's queues could be had, and could not.

    ``trouble`` says why it is not to be had just now, "" if it is.
    """

    name: str
    succeeded: int
    failed: int
    trouble: str


class Delivery(Protocol):
    """A message that this runner holds until it settles it, once, by ack, give_back or refuse.

    When the process dies, or the connection it came on, the server gives the message back by itself.
    Settling a lost delivery does nothing.
    """

    queue: str
    body: bytes
    #: Deliveries of this message before this one, to whomever and however they ended, where the server counts them,
    #: otherwise None.
    redeliveries: int | None
    #: True when the server says that it has delivered this very message before.
    redelivered: bool

    @property
    def lost(self) -> bool:
        """True when the server has taken the message back: it will come again, here or elsewhere."""

    @property
    def window(self) -> float | None:
        """Seconds until the server takes the message back if nothing is done; None: it never does, or does not say."""

    def ack(self) -> None:
        """The message's fate is decided: remove it."""

    def give_back(self) -> None:
        """Somebody, perhaps this runner, is to take it again."""

    def refuse(self) -> None:
        """Remove it as unusable: to the queue's dead-letter target where it has one."""

    def keep_alive(self) -> None:
        """Tell the server, if it wants to hear so, that the message is still being worked on."""


class QueueServer(Protocol):
    """One broker, account or directory with any number of queues."""

    #: Short kind for logs and metrics: ``rmq``, ``sqs`` or ``local``.
    kind: str

    def queues(self) -> Collection[str]:
        """Names of the work queues known just now, already matched against the operator's patterns."""

    def others(self) -> Collection[str]:
        """Names of the queues known besides: those for reports, and those that the operator's patterns leave out."""

    def refreshed(self) -> Collection[Refreshed]:
        """Say how the search for queues goes, for each account or broker."""

    def deleted(self, queue: str) -> bool:
        """True when the server, asked a short while ago, knew of no such queue, and has not lost its memory since."""

    def take(self, queue: str) -> Delivery | None:
        """Take a message if one is at hand. After a None the server listens, and wakes the loop when one comes."""

    def rest(self, queue: str) -> None:
        """Stop listening to a queue, until the next take; a message that came meanwhile is given back."""

    def publish(self, queue: str, body: bytes) -> bool:
        """Hand over a message for a queue that is there, in order; False when the server takes none just now."""

    def close(self) -> None:
        """Give back all that is held and not settled, and disconnect. May be called twice."""
