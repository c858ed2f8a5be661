"""RabbitMQ: a connection that is a guest in the process's loop; messages are pushed, one at a time, when wanted.

Each message comes, stays held and is settled on a channel of its own. The broker closes a channel for many reasons (the
queue vanished, the message was held for longer than its ``consumer_timeout``), and takes back all that the channel
held: like this it is never more than the one message that the reason is about.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from typing import Any

import pika
from pika import exceptions
from pika.channel import Channel
from pika.spec import Basic, BasicProperties

from runner.loop import Loop
from runner.queues.amqp import fault_of, name_of, parameters_of
from runner.queues.base import Refreshed
from runner.queues.confirmed import Publisher
from runner.queues.discovery import Listed, Named
from runner.queues.link import Link
from runner.queues.management import Management

log = logging.getLogger(__name__)

# How long closing may take, in seconds.
_CLOSING = 2.0


class RabbitDelivery:
    """A message held on a channel of its own. ``until``: when the broker takes it back, in monotonic seconds."""

    until: float | None = None

    def __init__(
        self, queue: str, channel: Channel, method: Basic.Deliver, properties: BasicProperties, body: bytes
    ) -> None:
        self.queue, self.body, self.redelivered = queue, body, bool(method.redelivered)
        # Only quorum queues count: https://www.rabbitmq.com/docs/quorum-queues#poison-message-handling
        count = (properties.headers or {}).get("x-delivery-count")
        self.redeliveries: int | None = count if isinstance(count, int) else None
        self._channel, self._tag, self._settled = channel, method.delivery_tag, False

    @property
    def lost(self) -> bool:
        """True when the channel is gone, and with it our hold on the message."""
        return not (self._settled or self._channel.is_open)

    @property
    def window(self) -> float | None:
        """What is left of the queue's own ``consumer_timeout``; that of the whole broker is not told."""
        return None if self.until is None else self.until - time.monotonic()

    def ack(self) -> None:
        """Remove the message."""
        self._settle(self._channel.basic_ack)

    def give_back(self) -> None:
        """Put the message back where it was in its queue."""
        self._settle(self._channel.basic_reject)

    def refuse(self) -> None:
        """Drop the message: to the queue's dead-letter exchange, where it has one."""
        self._settle(partial(self._channel.basic_reject, requeue=False))

    def keep_alive(self) -> None:
        """The connection's heartbeat says enough."""

    def _settle(self, answer: Callable[[int], object]) -> None:
        if not (self._settled or self.lost):
            self._settled = True
            answer(self._tag)
            self._channel.close()


class _Listener:
    """A wish for one message of one queue. ``ended`` is told when the channel is closed, and why."""

    def __init__(
        self, connection: pika.SelectConnection, queue: str, ended: Callable[[_Listener, Exception], None]
    ) -> None:
        self.queue, self._ended = queue, ended
        self.delivery: RabbitDelivery | None = None
        self._channel: Channel = connection.channel(on_open_callback=self._opened)
        self._channel.add_on_close_callback(lambda _channel, reason: ended(self, reason))
        self._channel.add_on_cancel_callback(self._cancelled)

    def rest(self) -> None:
        """Want it no more; the broker takes back what it may have pushed."""
        if not (self._channel.is_closing or self._channel.is_closed):
            self._channel.close()

    def _opened(self, channel: Channel) -> None:
        channel.basic_qos(prefetch_count=1)
        channel.basic_consume(self.queue, self._pushed)

    def _pushed(self, channel: Channel, method: Basic.Deliver, properties: BasicProperties, body: bytes) -> None:
        channel.basic_cancel(method.consumer_tag)
        self.delivery = RabbitDelivery(self.queue, channel, method, properties, body)

    def _cancelled(self, _frame: Any) -> None:
        """The broker has ended the consumer: the queue is deleted, or moves to another node."""
        if self.delivery is None:
            self._ended(self, exceptions.ChannelClosedByBroker(404, "the queue is gone"))
            self.rest()


@dataclass(frozen=True)
class Address:
    """Where a broker is. ``url`` and ``management_url`` ("" for the usual place) may hold ``$VARIABLES``.

    ``ca`` is a PEM file of authorities for both, "" for the well-known ones. With ``names``, these are the only queues,
    and the management API is not needed.
    """

    url: str
    management_url: str = ""
    ca: str = ""
    names: tuple[str, ...] = ()


class RabbitMQ:
    """A QueueServer for one RabbitMQ broker.

    The parameters of the address's URL are those of pika.URLParameters. ``wanted`` picks work queues by name. Raises
    ConfigError for a URL that is none.
    """

    kind = "rmq"

    def __init__(self, loop: Loop, address: Address, wanted: Callable[[str], bool]) -> None:
        self._loop, self._wanted = loop, wanted
        self._parameters = parameters_of(address.url, address.ca)
        self._notices = _Notices()
        self._queues: set[str] = set()
        # All queues that were found last, and all that were there at some time since we have been connected.
        self._found: set[str] | None = None
        self._seen: set[str] = set()
        self._listeners: dict[str, _Listener] = {}
        self._warned = False
        self._closing = False
        self._refreshes = self._refresh_failures = 0
        self._publisher = Publisher(loop, self._parameters)
        self._link = Link(loop, self._parameters, opened=self._opened, failed=self._failed)
        self._discovery = self._discover(address)

    def _discover(self, address: Address) -> Listed | Named:
        management = Management(address.management_url, self._parameters, address.ca)
        if not address.names:
            return Listed(self._loop, management, self._discovered)
        reports = tuple(f"{name}_response" for name in address.names)
        return Named(self._loop, address.names + reports, lambda: self._link.connection, self._discovered)

    # The seam

    def queues(self) -> Collection[str]:
        """Return the names of the queues found last."""
        return self._queues

    def others(self) -> Collection[str]:
        """Return the names of the other queues found last."""
        return (self._found or set()) - self._queues

    def refreshed(self) -> Collection[Refreshed]:
        """Say how often the broker's queues could be found."""
        known = self._link.is_open and self._found is not None
        trouble = self._notices.now("connection") or self._notices.now("discovery")
        trouble = trouble or ("" if known else "its queues are not known yet")
        return [Refreshed(name_of(self._parameters), self._refreshes, self._refresh_failures, trouble)]

    def deleted(self, queue: str) -> bool:
        """True when the queue was there, and is not, and the broker was not away meanwhile: that deletes queues too."""
        return self._found is not None and queue in self._seen and queue not in self._found

    def take(self, queue: str) -> RabbitDelivery | None:
        """Return the message that was pushed, or begin to listen."""
        listener = self._listeners.get(queue)
        if listener is None:
            self._listen(queue)
        elif listener.delivery:
            del self._listeners[queue]
            self._notices.over(queue)
            if window := self._discovery.windows.get(queue):
                listener.delivery.until = time.monotonic() + window
            return listener.delivery
        return None

    def rest(self, queue: str) -> None:
        """Stop listening."""
        if listener := self._listeners.pop(queue, None):
            listener.rest()

    def publish(self, queue: str, body: bytes) -> bool:
        """Publish as clients do."""
        return self._publisher.publish(queue, body)

    def close(self) -> None:
        """Disconnect; the broker takes back what is held. Serves the loop meanwhile, for a few seconds at most."""
        if self._closing:
            return
        self._closing = True
        self._discovery.close()
        self._serve_while(lambda: self._publisher.busy)
        self._publisher.close()
        self._link.close()
        self._serve_while(lambda: not (self._link.is_closed and self._publisher.is_closed))

    def _serve_while(self, true: Callable[[], bool]) -> None:
        alarm = self._loop.call_later(_CLOSING, lambda: None)
        while alarm.call and true():
            self._loop.run_once(_CLOSING)
        self._loop.remove_timeout(alarm)

    # The connection

    def _opened(self) -> None:
        self._notices.over("connection")
        self._seen = set()
        log.info("connected to %s", name_of(self._parameters))
        if not self._warned:
            log.warning(
                "%s takes a message back when it is held for longer than its consumer_timeout (30m unless it is "
                "configured otherwise): a longer experiment goes on, and its message is taken again then",
                name_of(self._parameters),
            )
            self._warned = True

    def _failed(self, error: Exception) -> None:
        """The connection is lost, or could not be made."""
        self._listeners.clear()
        if not self._closing:
            self._notices.trouble("connection", f"{fault_of(error, self._parameters)}; trying again until it works")

    def _listen(self, queue: str) -> None:
        if self._link.is_open:
            try:
                self._listeners[queue] = _Listener(self._link.connection, queue, self._ended)
            except exceptions.NoFreeChannels:
                where = name_of(self._parameters)
                self._notices.trouble(
                    queue, f"{where} allows no more channels, so queue {queue} has to wait: raise its channel_max"
                )

    def _ended(self, listener: _Listener, reason: Exception) -> None:
        """A channel is closed: as it has done its work, or as the connection is lost, or for the broker's reasons."""
        queue = listener.queue
        if self._listeners.get(queue) is listener:
            del self._listeners[queue]
        if not isinstance(reason, exceptions.ChannelClosedByBroker):
            return
        if listener.delivery is None:
            self._queues.discard(queue)  # until it is found again
        if reason.reply_code != 404:
            self._notices.trouble(queue, _complaint(queue, reason))

    # Finding queues

    def _discovered(self, found: set[str] | None, trouble: str) -> None:
        if found is None:
            self._refresh_failures += 1
            self._notices.trouble("discovery", trouble)
            return
        self._found = found
        self._refreshes += 1
        self._notices.over("discovery")
        if self._link.is_open:
            self._seen |= found
        self._keep({queue for queue in found if self._wanted(queue)})

    def _keep(self, queues: set[str]) -> None:
        for queue in sorted(queues - self._queues):
            log.info("queue %s found", queue)
        for queue in sorted(self._queues - queues):
            log.info("queue %s is gone", queue)
            self.rest(queue)
        self._queues = queues


class _Notices:
    """Says what is wrong when it begins, and not again until it has changed."""

    def __init__(self) -> None:
        self._said: dict[str, str] = {}

    def trouble(self, subject: str, text: str) -> None:
        if self._said.get(subject) != text:
            log.warning("%s", text)
        self._said[subject] = text

    def now(self, subject: str) -> str:
        return self._said.get(subject, "")

    def over(self, subject: str) -> None:
        self._said.pop(subject, None)


def _complaint(queue: str, reason: exceptions.ChannelClosedByBroker) -> str:
    if "timed out" in reason.reply_text:
        return (
            f"the broker has taken back a message of queue {queue}, held for longer than its consumer_timeout: "
            "the experiment goes on, and the message is taken again"
        )
    return f"the broker does not let this runner listen to queue {queue}: {reason.reply_text}"
