"""RabbitMQ: one connection that is a guest in the process's loop; messages are pushed, one at a time, when wanted.

Each message comes, stays held and is settled on a channel of its own. The broker closes a channel for many reasons (the
queue vanished, the message was held for longer than its ``consumer_timeout``), and takes back all that the channel
held: like this it is never more than the one message that the reason is about.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import ssl
from collections.abc import Callable, Collection
from functools import partial
from threading import Thread
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import pika
from pika import exceptions
from pika.adapters.utils.selector_ioloop_adapter import SelectorIOServicesAdapter
from pika.channel import Channel
from pika.spec import Basic, BasicProperties

from runner.errors import ConfigError, Unavailable
from runner.loop import Loop
from runner.retry import Patience

log = logging.getLogger(__name__)

EXCHANGE = "StudioML.topic"
_PREFIX = "StudioML."

# In seconds: how often queues are looked for, how long the management API may take to connect and to answer, how long
# closing may take, and how long a broker that is out of memory or disk space may keep a publisher waiting.
_DISCOVERY = 5.0
_ANSWER = (3.0, 10.0)
_CLOSING = 2.0
_BLOCKED = 30.0
# Nobody but an operator can end this runner's patience with its broker.
_RECONNECTION = Patience(total=float("inf"))


class RabbitDelivery:
    """A message held on a channel of its own."""

    def __init__(self, queue: str, channel: Channel, tag: int, properties: BasicProperties, body: bytes) -> None:
        self.queue, self.body = queue, body
        # Only quorum queues count: https://www.rabbitmq.com/docs/quorum-queues#poison-message-handling
        count = (properties.headers or {}).get("x-delivery-count")
        self.redeliveries: int | None = count if isinstance(count, int) else None
        self._channel, self._tag, self._settled = channel, tag, False

    @property
    def lost(self) -> bool:
        """True when the channel is gone, and with it our hold on the message."""
        return not (self._settled or self._channel.is_open)

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
        self.delivery = RabbitDelivery(self.queue, channel, method.delivery_tag, properties, body)

    def _cancelled(self, _frame: Any) -> None:
        """The broker has ended the consumer: the queue is deleted, or moves to another node."""
        if self.delivery is None:
            self._ended(self, exceptions.ChannelClosedByBroker(404, "the queue is gone"))
            self.rest()


class RabbitMQ:
    """A QueueServer for one RabbitMQ broker.

    ``url`` and ``management_url`` ("" for the usual place) may hold ``$VARIABLES``; the parameters of the former are
    those of pika.URLParameters. ``wanted`` picks work queues by name. Raises ConfigError for a URL that is none.
    """

    kind = "rmq"

    def __init__(self, loop: Loop, url: str, management_url: str, wanted: Callable[[str], bool]) -> None:
        self._loop, self._wanted = loop, wanted
        self._parameters = _parameters(url)
        self._management = _Management(management_url, self._parameters)
        self._notices = _Notices()
        self._queues: set[str] = set()
        self._listeners: dict[str, _Listener] = {}
        self._delays = _RECONNECTION.delays()
        self._closing = False
        self._connect()
        self._discover()

    # The seam

    def queues(self) -> Collection[str]:
        """Return the names of the queues found last."""
        return self._queues

    def take(self, queue: str) -> RabbitDelivery | None:
        """Return the message that was pushed, or begin to listen."""
        listener = self._listeners.get(queue)
        if listener is None:
            self._listen(queue)
        elif listener.delivery:
            del self._listeners[queue]
            self._notices.over(queue)
            return listener.delivery
        return None

    def rest(self, queue: str) -> None:
        """Stop listening."""
        if listener := self._listeners.pop(queue, None):
            listener.rest()

    def close(self) -> None:
        """Disconnect; the broker takes back what is held. Serves the loop meanwhile, for a few seconds at most."""
        if self._closing:
            return
        self._closing = True
        if self._connection.is_open:
            self._connection.close()
        alarm = self._loop.call_later(_CLOSING, lambda: None)
        while alarm.call and not self._connection.is_closed:
            self._loop.run_once(_CLOSING)
        self._loop.remove_timeout(alarm)

    # The connection

    def _connect(self) -> None:
        if not self._closing:
            self._connection = pika.SelectConnection(
                self._parameters,
                on_open_callback=self._opened,
                on_open_error_callback=self._failed,
                on_close_callback=self._failed,
                custom_ioloop=SelectorIOServicesAdapter(self._loop),
            )

    def _opened(self, connection: pika.SelectConnection) -> None:
        if self._closing:
            connection.close()  # not sooner: pika 1.4 fails over an opening that is given up
            return
        self._notices.over("connection")
        self._delays = _RECONNECTION.delays()
        log.info("connected to %s", _name(self._parameters))

    def _failed(self, _connection: pika.SelectConnection, error: Exception) -> None:
        """The connection is lost, or could not be made: try again, later each time, for as long as it takes."""
        self._listeners.clear()
        if not self._closing:
            self._notices.trouble("connection", f"{_fault(error, self._parameters)}; trying again until it works")
            self._loop.call_later(next(self._delays), self._connect)

    def _listen(self, queue: str) -> None:
        if self._connection.is_open:
            try:
                self._listeners[queue] = _Listener(self._connection, queue, self._ended)
            except exceptions.NoFreeChannels:
                where = _name(self._parameters)
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

    def _discover(self) -> None:
        if not self._closing:
            Thread(target=self._ask_management, name="management", daemon=True).start()

    def _ask_management(self) -> None:
        """In a thread of its own: nothing of the loop's is touched but by add_callback."""
        try:
            found = self._management.bound_queues()
        except Unavailable as error:
            self._loop.add_callback(partial(self._discovered, None, str(error)))
        else:
            self._loop.add_callback(partial(self._discovered, found))

    def _discovered(self, found: set[str] | None, trouble: str = "") -> None:
        self._loop.call_later(_DISCOVERY, self._discover)
        if found is None:
            self._notices.trouble("management", trouble)
        else:
            self._notices.over("management")
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

    def over(self, subject: str) -> None:
        self._said.pop(subject, None)


class _Management:
    """The broker's management API, at ``url``, or "" for the usual place."""

    def __init__(self, url: str, parameters: pika.URLParameters) -> None:
        scheme = "https" if parameters.ssl_options else "http"
        host = f"[{parameters.host}]" if ":" in parameters.host else parameters.host
        parts = urlsplit(os.path.expandvars(url) or f"{scheme}://{host}:{parameters.port + 10000}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError("--amqp-mgt-url cannot be understood: http[s]://HOST:PORT is needed")
        self._base = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}"
        self._path = f"/api/exchanges/{quote(parameters.virtual_host, safe='')}/{EXCHANGE}/bindings/source"
        self._user = unquote(parts.username or "") or parameters.credentials.username
        self._password = unquote(parts.password or "") or parameters.credentials.password

    def bound_queues(self) -> set[str]:
        """Return the names of the queues that clients have bound to their exchange. Blocks. Raises Unavailable."""
        # Imported in the thread that this is called in, while the main thread connects.
        import requests  # noqa: PLC0415

        try:
            answer = requests.get(self._base + self._path, auth=(self._user, self._password), timeout=_ANSWER)
        except requests.RequestException as error:
            how = f"cannot be reached ({type(error).__name__})"
            raise self._unavailable(f"{how}: enable the plugin rabbitmq_management, or set --amqp-mgt-url") from error
        if answer.status_code == 404:
            return set()  # no client has made the exchange yet, or the last one has taken it away
        if answer.status_code in (401, 403):
            raise self._unavailable(f"refuses user {self._user!r}: give that user the tag management")
        try:
            answer.raise_for_status()
            return _bound_queues(answer.json())
        except (requests.RequestException, ValueError, TypeError, KeyError) as error:
            raise self._unavailable(
                f"answers with status {answer.status_code} and no bindings: check --amqp-mgt-url"
            ) from error

    def _unavailable(self, why: str) -> Unavailable:
        return Unavailable(f"the queues of RabbitMQ cannot be listed: its management API at {self._base} {why}")


def _bound_queues(bindings: list[dict[str, str]]) -> set[str]:
    return {
        binding["destination"]
        for binding in bindings
        if binding["destination_type"] == "queue" and binding["routing_key"].startswith(_PREFIX)
    }


def _parameters(url: str) -> pika.URLParameters:
    """Parse a URL. What is wrong with it is not repeated: any part of it may be a piece of the password."""
    expanded = os.path.expandvars(url)
    try:
        if re.match("amqps?://", expanded):
            return pika.URLParameters(expanded)
    except (ValueError, TypeError, SyntaxError, OSError):
        pass
    raise ConfigError(
        "--amqp-url cannot be understood: amqp[s]://USER:PASSWORD@HOST:PORT/VHOST is needed, "
        "with special characters of the password and the virtual host written as %XX"
    )


# What goes wrong, in words. They are formatted with pika's error, without its wrappers, and with the parameters.

_REFUSALS: dict[type[BaseException], str] = {
    exceptions.ProbableAuthenticationError: "refuses the name or password of user {at.credentials.username!r}",
    exceptions.ProbableAccessDeniedError: "does not let user {at.credentials.username!r} into virtual host "
    "{at.virtual_host!r} ({error.args[0]})",
    exceptions.IncompatibleProtocolError: "does not speak AMQP: check the port",
    exceptions.ChannelClosedByBroker: "does not allow that: {error.reply_text}",
    ssl.SSLCertVerificationError: "has a certificate that is not trusted: {error.verify_message}",
}
_FAILURES: dict[type[BaseException], str] = {
    exceptions.ConnectionClosedByBroker: "has closed the connection: {error.reply_text}",
    exceptions.StreamLostError: "has cut the connection",
    exceptions.AMQPHeartbeatTimeout: "has been silent for too long",
    exceptions.ConnectionBlockedTimeout: "takes no messages: it is short of memory or disk space",
    exceptions.ConnectionOpenAborted: "does not answer",
    exceptions.UnroutableError: "has no such queue any more",
    exceptions.NackError: "has not stored the message",
    TimeoutError: "does not answer",
    socket.gaierror: "cannot be found: {error.strerror}",
    OSError: "cannot be reached: {error.strerror}",
    BaseException: "cannot be used: {error!r}",
}


def _fault(error: BaseException, parameters: pika.URLParameters) -> ConfigError | Unavailable:
    """Return pika's error as one of ours."""
    while inner := _wrapped(error):
        error = inner
    words = next((words for kind, words in _REFUSALS.items() if isinstance(error, kind)), "")
    ours = ConfigError if words else Unavailable
    words = words or next(words for kind, words in _FAILURES.items() if isinstance(error, kind))
    return ours(f"{_name(parameters)} {words.format(error=error, at=parameters)}")


def _wrapped(error: BaseException) -> BaseException | None:
    """Return what an error of pika's is about: a connection's failure comes in up to three layers."""
    inner = [getattr(error, "exception", None), *getattr(error, "exceptions", ())[-1:], *error.args]
    return next((each for each in inner if isinstance(each, BaseException)), None)


def _complaint(queue: str, reason: exceptions.ChannelClosedByBroker) -> str:
    if "timed out" in reason.reply_text:
        return (
            f"the broker has taken back a message of queue {queue} which was held for too long: "
            "set consumer_timeout in its rabbitmq.conf to more than the longest experiment takes"
        )
    return f"the broker does not let this runner listen to queue {queue}: {reason.reply_text}"


def _name(parameters: pika.URLParameters) -> str:
    return f"RabbitMQ at {parameters.host}:{parameters.port}"


# The client's side


def publish(url: str, queue: str, body: bytes) -> None:
    """Publish a message as StudioML clients do: exchange, queue and binding are made if need be (protocol section 3).

    Blocks until the broker has the message. Raises ConfigError when the operator has to act, else Unavailable.
    """
    parameters = _parameters(url)
    parameters.blocked_connection_timeout = parameters.blocked_connection_timeout or _BLOCKED
    try:
        connection = pika.BlockingConnection(parameters)
        try:
            _publish(connection, queue, body)
        finally:
            if connection.is_open:
                connection.close()
    except (exceptions.AMQPError, OSError) as error:
        raise _fault(error, parameters) from error


def _publish(connection: pika.BlockingConnection, queue: str, body: bytes) -> None:
    if not _exists(connection, queue):
        connection.channel().queue_declare(queue)
    channel = connection.channel()
    channel.exchange_declare(EXCHANGE, "topic", durable=True, auto_delete=True)
    channel.queue_bind(queue, EXCHANGE, _PREFIX + queue)
    channel.confirm_delivery()
    properties = BasicProperties(content_type="application/json", app_id="studioml", delivery_mode=2)
    channel.basic_publish(EXCHANGE, _PREFIX + queue, body, properties, mandatory=True)


def _exists(connection: pika.BlockingConnection, queue: str) -> bool:
    """A queue that is there is left as it is, for its properties are its owner's affair."""
    try:
        connection.channel().queue_declare(queue, passive=True)
    except exceptions.ChannelClosedByBroker as error:
        if error.reply_code != 404:
            raise
        return False
    return True
