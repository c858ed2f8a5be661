"""Amazon SQS: a thread for each queue that is listened to waits for messages; all else is done by a few more.

What the loop owns is changed in the loop only: threads hand over what they have by ``add_callback``.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection
from functools import partial
from queue import SimpleQueue
from threading import Event, Thread

from runner.errors import Unavailable
from runner.loop import Loop
from runner.queues.base import Refreshed
from runner.queues.sqs_account import Options, Place, Refused
from runner.queues.sqs_held import TIMING, Hands, SQSDelivery, Timing
from runner.queues.sqs_search import Found, Search
from runner.queues.sqs_sending import Sender
from runner.retry import Patience

log = logging.getLogger(__name__)

# How long closing may take, in seconds.
_CLOSING = 5.0
_PATIENCE = Patience(total=float("inf"), first=1.0)
# An empty answer to a long poll that comes sooner is none of SQS's, and is not asked for again at once. In seconds.
_SOONEST = 1.0


class SQS:
    """A QueueServer for the queues of some AWS accounts.

    ``wanted`` picks work queues by name; with ``names``, these are the only ones, and no right to list is needed.
    """

    kind = "sqs"

    def __init__(
        self,
        loop: Loop,
        options: Options,
        wanted: Callable[[str], bool],
        names: tuple[str, ...] = (),
        timing: Timing = TIMING,
    ) -> None:
        self._loop, self._wanted, self._timing = loop, wanted, timing
        self._hands, self._sender = Hands(), Sender()
        self._places: dict[str, Place] = {}
        self._queues: set[str] = set()
        self._gone: set[str] = set()
        self._pullers: dict[str, _Puller] = {}
        self._held: list[SQSDelivery] = []
        self._closed = False
        self._refreshed: tuple[Refreshed, ...] = (Refreshed("SQS", 0, 0, "its queues are not known yet"),)
        self._search = Search(options, names, lambda found: loop.add_callback(partial(self._discovered, found)))

    # The seam

    def queues(self) -> Collection[str]:
        """Return the names of the work queues found last."""
        return self._queues

    def others(self) -> Collection[str]:
        """Return the names of the other queues found last."""
        return self._places.keys() - self._queues

    def refreshed(self) -> Collection[Refreshed]:
        """Say how often each account's queues could be found."""
        return self._refreshed

    def deleted(self, queue: str) -> bool:
        """True when neither the account's list nor SQS itself knows a queue that was there."""
        return queue in self._gone

    def take(self, queue: str) -> SQSDelivery | None:
        """Return the message that came, or begin to wait for one."""
        place = self._places.get(queue)
        if place is None or self._closed:
            return None
        if queue not in self._pullers:
            self._pullers[queue] = _Puller(self._loop, queue, place, self._hands, self._timing)
        delivery = self._pullers[queue].take()
        if delivery:
            self._held = [each for each in self._held if not (each.settled or each.lost)] + [delivery]
        return delivery

    def rest(self, queue: str) -> None:
        """Wait no longer. What is asked for already may still come for a while; it is given back at once."""
        if puller := self._pullers.get(queue):
            puller.rest()

    def publish(self, queue: str, body: bytes) -> bool:
        """Have a message sent by a thread."""
        place = self._places.get(queue)
        return place is not None and self._sender.send(place.account, place.url, body)

    def close(self) -> None:
        """Give back what is held and send what waits, for a few seconds at most."""
        if self._closed:
            return
        self._closed = True
        self._search.close()
        for puller in self._pullers.values():
            puller.close()
        for delivery in self._held:
            delivery.give_back()
        end = time.monotonic() + _CLOSING
        self._hands.finish(_CLOSING)
        self._sender.finish(max(0.0, end - time.monotonic()))

    def _discovered(self, found: Found) -> None:
        if self._closed:
            return
        self._refreshed = found.refreshed
        queues = set(filter(self._wanted, found.places))
        for name in sorted(self._queues - queues):
            log.info("queue %s is gone", name)
        for name in sorted(queues - self._queues):
            log.info("queue %s found", name)
        self._places, self._queues = dict(found.places), queues
        self._gone = (self._gone | found.gone) - self._places.keys()
        for name in [name for name, puller in self._pullers.items() if self._places.get(name) != puller.place]:
            self._pullers.pop(name).close()


class _Puller:
    """One queue's thread, which waits for a message whenever one is wanted. Its public side is for the loop."""

    def __init__(self, loop: Loop, queue: str, place: Place, hands: Hands, timing: Timing) -> None:
        self.place = place
        self._loop, self._queue, self._hands, self._timing = loop, queue, hands, timing
        self._arrived: SQSDelivery | None = None
        self._asking = False
        self._resting = Event()
        self._closed = Event()
        self._go: SimpleQueue[bool] = SimpleQueue()
        Thread(target=self._run, name=f"sqs-{queue}", daemon=True).start()

    def take(self) -> SQSDelivery | None:
        arrived, self._arrived = self._arrived, None
        if arrived and not arrived.lost:
            return arrived
        self._resting.clear()
        if not self._asking:
            self._asking = True
            self._go.put(True)
        return None

    def rest(self) -> None:
        self._resting.set()
        if self._arrived:
            self._arrived.give_back()
            self._arrived = None

    def close(self) -> None:
        self.rest()
        self._closed.set()
        self._go.put(False)

    def _came(self, delivery: SQSDelivery | None) -> None:
        """In the loop: the thread has stopped asking."""
        self._asking = False
        if delivery and self._resting.is_set():
            delivery.give_back()
        else:
            self._arrived = delivery

    # In the thread

    def _run(self) -> None:
        while self._go.get():
            delivery = self._wait()
            if delivery and self._closed.is_set():
                delivery.give_back()  # nobody runs the loop any more
            else:
                self._loop.add_callback(partial(self._came, delivery))

    def _wait(self) -> SQSDelivery | None:
        """Ask until a message comes, or none is wanted."""
        delays, said = _PATIENCE.delays(), ""
        while not self._resting.is_set():
            asked = time.monotonic()
            try:
                message = self.place.account.receive(self.place.url, self._timing.visibility, self._timing.poll)
            except (Refused, Unavailable) as error:
                if str(error) != said:
                    log.warning("queue %s: %s; trying again until it works", self._queue, error)
                    said = str(error)
                self._closed.wait(next(delays))
                continue
            delays, said = _PATIENCE.delays(), ""
            if message:
                # SQS hides it from the moment that it gives it, which may be much later than when it was asked.
                received = max(asked, time.monotonic() - self._timing.visibility / 10)
                return SQSDelivery(self._queue, self.place, self._hands, message, received, self._timing)
            self._closed.wait(_SOONEST - (time.monotonic() - asked))
        return None
