"""RabbitMQ: one connection that is a guest in the process's loop; messages are pushed, one at a time, when wanted.

A queue is listened to by a consumer with room for one message, on a channel of the queue's own: what goes wrong with
one queue (it is deleted, its channel is closed) takes nothing away from another. When the message comes the consumer
is cancelled at once, so that nothing is taken that was not asked for; the message stays held, unacknowledged.
"""

from __future__ import annotations

import logging
import os
import random
import re
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any
from urllib.parse import quote, urlsplit

import pika
from pika import exceptions
from pika.adapters.utils.selector_ioloop_adapter import SelectorIOServicesAdapter
from pika.channel import Channel
from pika.spec import Basic, BasicProperties

from runner.errors import ConfigError, Unavailable
from runner.loop import Loop

log = logging.getLogger(__name__)

EXCHANGE = "StudioML.topic"
_PREFIX = "StudioML."

# In seconds: how often queues are looked for; the first and the longest delay before connecting again; how long
# closing may take; how long the management API may take to connect and to answer.
_DISCOVERY = 5.0
_FIRST_DELAY = 0.5
_LONGEST_DELAY = 30.0
_CLOSING = 2.0
_PATIENCE = (3.0, 10.0)


def masked(url: str) -> str:
    """Return a URL without its user and password."""
    return re.sub(r"(?<=://)[^/@]*@", "", url)


class RabbitDelivery:
    """A message held on its queue's channel."""

    def __init__(self, queue: str, channel: Channel, tag: int, properties: BasicProperties, body: bytes) -> None:
        self.queue, self.body = queue, body
        count = (properties.headers or {}).get("x-delivery-count")
        self.redeliveries: int | None = count if isinstance(count, int) else None
        self._channel, self._tag, self._settled = channel, tag, False

    @property
    def lost(self) -> bool:
        """True when the channel is gone, and with it our hold on the message."""
        return not self._settled and not self._channel.is_open

    def ack(self) -> None:
        """Remove the message."""
        if self._settle():
            self._channel.basic_ack(self._tag)

    def give_back(self) -> None:
        """Put the message back into its queue."""
        if self._settle():
            self._channel.basic_nack(self._tag, requeue=True)

    def refuse(self) -> None:
        """Drop the message: into the queue's dead-letter exchange, where it has one."""
        if self._settle():
            self._channel.basic_nack(self._tag, requeue=False)

    def keep_alive(self) -> None:
        """The connection's heartbeat says enough."""

    def _settle(self) -> bool:
        if self._settled or self.lost:
            return False
        self._settled = True
        return True


class _Listener:
    """One queue: its channel, and at most one consumer with at most one message."""

    def __init__(self, queue: str, connection: pika.SelectConnection, gone: Callable[[], None]) -> None:
        self._queue, self._gone = queue, gone
        self._consumer = ""
        self._waiting: RabbitDelivery | None = None
        self._channel: Channel | None = None
        self._wanted = True
        connection.channel(on_open_callback=self._opened)

    def take(self) -> RabbitDelivery | None:
        delivery, self._waiting = self._waiting, None
        self._wanted = True
        if delivery is None:
            self._listen()
        return delivery

    def rest(self) -> None:
        self._wanted = False
        self._cancel()
        if self._waiting:
            self._waiting.give_back()
            self._waiting = None

    def close(self) -> None:
        if self._channel and self._channel.is_open:
            self._channel.close()

    def _opened(self, channel: Channel) -> None:
        self._channel = channel
        channel.add_on_close_callback(self._closed)
        channel.add_on_cancel_callback(self._cancelled)
        channel.basic_qos(prefetch_count=1)
        self._listen()

    def _listen(self) -> None:
        if self._wanted and self._channel and self._channel.is_open and not self._consumer:
            self._consumer = self._channel.basic_consume(self._queue, self._message)

    def _message(self, channel: Channel, method: Basic.Deliver, properties: BasicProperties, body: bytes) -> None:
        self._cancel()
        delivery = RabbitDelivery(self._queue, channel, method.delivery_tag or 0, properties, body)
        if self._wanted and self._waiting is None:
            self._waiting = delivery
        else:
            delivery.give_back()

    def _cancel(self) -> None:
        if self._consumer and self._channel and self._channel.is_open:
            self._channel.basic_cancel(self._consumer)
        self._consumer = ""

    def _cancelled(self, _frame: Any) -> None:
        """The broker has cancelled the consumer, and taken back what was held: the queue is deleted, or moves."""
        self._consumer = ""
        self.close()
        self._gone()

    def _closed(self, _channel: Channel, reason: Exception) -> None:
        self._consumer, self._waiting = "", None
        if isinstance(reason, exceptions.ChannelClosedByBroker):
            level = logging.DEBUG if reason.reply_code == 404 else logging.WARNING
            log.log(level, "the broker has closed the channel of queue %s: %s", self._queue, reason.reply_text)
        self._gone()


class RabbitMQ:
    """A QueueServer for one RabbitMQ broker.

    ``url`` and ``management_url`` ("" for the usual place) may hold ``$VARIABLES``; see pika.URLParameters. ``wanted``
    picks work queues by name. Raises ConfigError for a URL that is none.
    """

    kind = "rmq"

    def __init__(self, loop: Loop, url: str, management_url: str, wanted: Callable[[str], bool]) -> None:
        self._loop, self._wanted = loop, wanted
        self._parameters = _parameters(os.path.expandvars(url))
        self._management = os.path.expandvars(management_url) or _management_url(os.path.expandvars(url))
        self._address = f"RabbitMQ at {self._parameters.host}:{self._parameters.port}"
        self._queues: set[str] = set()
        self._listeners: dict[str, _Listener] = {}
        self._connection: pika.SelectConnection | None = None
        self._delay = _FIRST_DELAY
        self._closing = False
        self._trouble = self._discovery_trouble = ""
        self._finder = ThreadPoolExecutor(1, "management")
        self._connect()
        self._discover()

    # The seam

    def queues(self) -> list[str]:
        """Return the queues found last, while there is a connection."""
        return list(self._queues) if self._is_open else []

    def take(self, queue: str) -> RabbitDelivery | None:
        """Return the message that was pushed, or begin to listen."""
        if not self._is_open or self._connection is None:
            return None
        if queue not in self._listeners:
            self._listeners[queue] = _Listener(queue, self._connection, lambda: self._forget(queue))
        return self._listeners[queue].take()

    def rest(self, queue: str) -> None:
        """Stop listening, and give back what was pushed meanwhile."""
        if queue in self._listeners:
            self._listeners[queue].rest()

    def close(self) -> None:
        """Disconnect; the broker gives back what is held."""
        self._closing = True
        self._finder.shutdown(wait=False, cancel_futures=True)
        if self._connection and not (self._connection.is_closed or self._connection.is_closing):
            self._connection.close()
        end = _Alarm(self._loop, _CLOSING)
        while self._connection and not self._connection.is_closed and not end.rung:
            self._loop.run_once(_CLOSING)

    # The connection

    @property
    def _is_open(self) -> bool:
        return self._connection is not None and self._connection.is_open

    def _connect(self) -> None:
        if not self._closing:
            self._connection = pika.SelectConnection(
                self._parameters,
                on_open_callback=self._opened,
                on_open_error_callback=lambda _connection, error: self._failed(error),
                on_close_callback=lambda _connection, error: self._failed(error),
                custom_ioloop=SelectorIOServicesAdapter(self._loop),
            )

    def _opened(self, _connection: pika.SelectConnection) -> None:
        log.info("connected to %s", self._address)
        self._delay, self._trouble = _FIRST_DELAY, ""

    def _failed(self, error: BaseException | str) -> None:
        """The connection is lost, or could not be made: try again, later each time, for as long as it takes."""
        self._listeners.clear()
        if self._closing:
            return
        trouble = _reason(error)
        if trouble != self._trouble:
            log.warning("%s: %s; trying again for as long as it takes", self._address, trouble)
        self._trouble = trouble
        self._loop.call_later(self._delay * random.uniform(0.75, 1.25), self._connect)  # noqa: S311 -- jitter
        self._delay = min(self._delay * 2, _LONGEST_DELAY)

    def _forget(self, queue: str) -> None:
        """A queue's channel or consumer has ended: unless the queue is found again, it is gone."""
        self._listeners.pop(queue, None)
        self._queues.discard(queue)

    # Finding queues

    def _discover(self) -> None:
        if not self._closing:
            future = self._finder.submit(_bound_queues, self._management, self._parameters)
            future.add_done_callback(lambda found: self._loop.add_callback(lambda: self._discovered(found)))

    def _discovered(self, found: Future[set[str]]) -> None:
        if found.cancelled() or self._closing:
            return
        error = found.exception()
        if isinstance(error, Unavailable):
            if str(error) != self._discovery_trouble:
                log.warning("%s", error)
            self._discovery_trouble = str(error)
        elif error is not None:
            raise error
        else:
            self._discovery_trouble = ""
            self._keep({queue for queue in found.result() if self._wanted(queue)})
        self._loop.call_later(_DISCOVERY, self._discover)

    def _keep(self, queues: set[str]) -> None:
        for queue in sorted(queues - self._queues):
            log.info("queue %s found", queue)
        for queue in sorted(self._queues - queues):
            log.info("queue %s is gone", queue)
            self.rest(queue)
        self._queues = queues


class _Alarm:
    def __init__(self, loop: Loop, seconds: float) -> None:
        self.rung = False
        loop.call_later(seconds, self._ring)

    def _ring(self) -> None:
        self.rung = True


def _parameters(url: str) -> pika.URLParameters:
    if urlsplit(url).scheme not in ("amqp", "amqps"):
        raise ConfigError(f"--amqp-url is {masked(url)!r}, but must be amqp[s]://USER:PASSWORD@HOST:PORT/VHOST")
    try:
        return pika.URLParameters(url)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"--amqp-url {masked(url)!r} cannot be understood: {error}") from error


def _management_url(url: str) -> str:
    """Return where a broker's management API usually is."""
    parts = urlsplit(url)
    scheme, port = ("https", 5671) if parts.scheme == "amqps" else ("http", 5672)
    host = f"[{parts.hostname}]" if parts.hostname and ":" in parts.hostname else parts.hostname
    return f"{scheme}://{host}:{(parts.port or port) + 10000}"


def _bound_queues(url: str, parameters: pika.URLParameters) -> set[str]:
    """Ask the management API which queues are bound to the exchange. Raises Unavailable."""
    import requests  # noqa: PLC0415 -- in the thread, while the connection is being made

    path = f"/api/exchanges/{quote(parameters.virtual_host, safe='')}/{EXCHANGE}/bindings/source"
    parts = urlsplit(url)
    base = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}"
    given = parameters.credentials
    user, password = parts.username or given.username, parts.password or given.password
    what = f"the queues of RabbitMQ cannot be listed, its management API at {base}"
    try:
        answer = requests.get(base + path, auth=(user, password), timeout=_PATIENCE)
        if answer.status_code == 404:
            return set()  # no client has made the exchange yet
        if answer.status_code in (401, 403):
            raise Unavailable(f"{what} refuses user {user!r}: give the user the tag management, or set --amqp-mgt-url")
        answer.raise_for_status()
        bindings = answer.json()
    except (requests.RequestException, ValueError) as error:
        how = f"does not answer ({type(error).__name__})"
        raise Unavailable(f"{what} {how}: enable the plugin rabbitmq_management, or set --amqp-mgt-url") from error
    return {
        binding["destination"]
        for binding in bindings
        if binding["destination_type"] == "queue" and binding["routing_key"].startswith(_PREFIX)
    }


def _reason(error: BaseException | str) -> str:
    """Say in words why there is no connection."""
    causes = [error, *getattr(error, "exceptions", ())]
    for cause in causes:
        if isinstance(cause, exceptions.ProbableAuthenticationError):
            return "it refuses the user or the password"
        if isinstance(cause, (exceptions.ProbableAccessDeniedError, exceptions.ConnectionClosedByBroker)):
            return f"it has closed the connection: {cause.reply_text if hasattr(cause, 'reply_text') else cause}"
    return "the connection is lost" if isinstance(error, exceptions.StreamLostError) else f"no connection ({error!r})"


# The client's side


def publish(url: str, queue: str, body: bytes) -> None:
    """Publish a message as StudioML clients do: exchange, queue and binding are made if need be (protocol section 3).

    Blocks until the broker has the message. Raises ConfigError for the URL, Unavailable for the broker.
    """
    parameters = _parameters(os.path.expandvars(url))
    properties = BasicProperties(content_type="application/json", app_id="studioml", delivery_mode=2)
    try:
        connection = pika.BlockingConnection(parameters)
        try:
            channel = connection.channel()
            channel.exchange_declare(EXCHANGE, "topic", durable=True, auto_delete=True)
            _declare(connection, queue)
            channel.queue_bind(queue, EXCHANGE, _PREFIX + queue)
            channel.confirm_delivery()
            channel.basic_publish(EXCHANGE, _PREFIX + queue, body, properties, mandatory=True)
        finally:
            connection.close()
    except exceptions.AMQPError as error:
        where = f"RabbitMQ at {parameters.host}:{parameters.port}"
        raise Unavailable(f"{where} has not taken the message for {queue}: {_reason(error)}") from error


def _declare(connection: pika.BlockingConnection, queue: str) -> None:
    """Make a queue as clients do, unless there is one: its properties are then its owner's affair."""
    probe = connection.channel()
    try:
        probe.queue_declare(queue, passive=True)
        probe.close()
    except exceptions.ChannelClosedByBroker as error:
        if error.reply_code != 404:
            raise
        maker = connection.channel()
        maker.queue_declare(queue)
        maker.close()
