"""Publishing to RabbitMQ from within the loop: in order, and again what was not confirmed when the broker was lost."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pika
from pika import exceptions
from pika.channel import Channel
from pika.spec import Basic, BasicProperties

from runner.queues.amqp import EXCHANGE, PREFIX

# So many messages may wait for the broker's word.
_WINDOW = 256


class Publisher:
    """One channel for all that this runner publishes.

    ``connection`` returns the connection of the moment. A message whose queue is gone by now is dropped.
    """

    def __init__(self, connection: Callable[[], pika.SelectConnection]) -> None:
        self._connection = connection
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

    def resume(self) -> None:
        """There is a connection again: send what the lost one had not confirmed."""
        if self.busy:
            self._open()

    @property
    def busy(self) -> bool:
        """True while the broker has not confirmed everything."""
        return bool(self._unconfirmed)

    def _open(self) -> None:
        if self._channel is None and self._connection().is_open:
            try:
                self._channel = self._connection().channel(on_open_callback=self._opened)
            except exceptions.NoFreeChannels:
                return
            self._channel.add_on_close_callback(self._closed)

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
