"""Publishing to RabbitMQ from within the loop: in order, and again what was not confirmed when the broker was lost."""

from __future__ import annotations

import logging
from collections import OrderedDict
from typing import Any

import pika
from pika import exceptions
from pika.channel import Channel
from pika.spec import Basic, BasicProperties

from runner.loop import Loop
from runner.queues.amqp import EXCHANGE, PREFIX, fault_of
from runner.queues.link import Link

log = logging.getLogger(__name__)

# So many messages may wait for the broker's word.
_WINDOW = 256


class Publisher:
    """One channel for all that this runner publishes, on a connection of its own, made when it is needed first.

    A broker that is short of memory or disk space reads nothing more from who publishes, acknowledgements included.
    A message whose queue is gone by now is dropped.
    """

    def __init__(self, loop: Loop, parameters: pika.URLParameters) -> None:
        self._loop, self._parameters = loop, parameters
        self._link: Link | None = None
        self._channel: Channel | None = None
        self._ready = False
        self._serial = 0
        # By the channel's delivery tag: what the broker has not confirmed.
        self._unconfirmed: OrderedDict[int, tuple[str, bytes]] = OrderedDict()

    def publish(self, queue: str, body: bytes) -> bool:
        """Send a message; False when that is not possible just now."""
        self._open()
        if not self._ready or len(self._unconfirmed) >= _WINDOW:
            return False
        self._send(queue, body)
        return True

    @property
    def busy(self) -> bool:
        """True while there is a connection, and the broker has not confirmed everything."""
        return bool(self._unconfirmed and self._link and self._link.is_open)

    @property
    def is_closed(self) -> bool:
        """True when there is no connection."""
        return self._link is None or self._link.is_closed

    def close(self) -> None:
        """Begin to close the connection."""
        if self._link:
            self._link.close()

    def _resume(self) -> None:
        """There is a connection again: send what the lost one had not confirmed."""
        if self._unconfirmed:
            self._open()

    def _open(self) -> None:
        if self._link is None:
            self._link = Link(self._loop, self._parameters, opened=self._resume, failed=self._lost)
        if self._channel is None and self._link.is_open:
            try:
                self._channel = self._link.connection.channel(on_open_callback=self._opened)
            except exceptions.NoFreeChannels:
                return
            self._channel.add_on_close_callback(self._closed)

    def _lost(self, error: Exception) -> None:
        log.debug("%s", fault_of(error, self._parameters))

    def _opened(self, channel: Channel) -> None:
        channel.confirm_delivery(ack_nack_callback=self._confirmed, callback=self._confirming)

    def _confirming(self, _frame: Any) -> None:
        """The broker counts from here on: first comes what it had not confirmed before it was lost."""
        again, self._unconfirmed = list(self._unconfirmed.values()), OrderedDict()
        self._serial, self._ready = 0, True
        for queue, body in again:
            self._send(queue, body)

    def _send(self, queue: str, body: bytes) -> None:
        assert self._channel is not None  # noqa: S101 -- ready means open
        self._serial += 1
        self._unconfirmed[self._serial] = (queue, body)
        properties = BasicProperties(content_type="application/json", app_id="studioml", delivery_mode=2)
        self._channel.basic_publish(EXCHANGE, PREFIX + queue, body, properties)

    def _confirmed(self, frame: Any) -> None:
        """The broker has a message, or everything up to it; one that it refused it would refuse again."""
        method: Basic.Ack | Basic.Nack = frame.method
        if not method.multiple:
            self._unconfirmed.pop(method.delivery_tag, None)
            return
        while self._unconfirmed and next(iter(self._unconfirmed)) <= method.delivery_tag:
            self._unconfirmed.popitem(last=False)

    def _closed(self, _channel: Channel, reason: Exception) -> None:
        self._channel, self._ready = None, False
        if isinstance(reason, exceptions.ChannelClosedByBroker):
            self._unconfirmed.clear()  # the exchange is gone, with all queues, or may not be written to
