"""RabbitMQ's address, its errors in words, and publishing, which is the client's side."""

from __future__ import annotations

import os
import re
import socket
import ssl
from collections.abc import Iterable
from contextlib import closing

import pika
from pika import exceptions
from pika.spec import BasicProperties

from runner.errors import ConfigError, Unavailable

EXCHANGE = "StudioML.topic"
PREFIX = "StudioML."
"""What every routing key begins with; the rest is the queue's name."""

# In seconds: how long a broker that is out of memory or disk space may keep a publisher waiting.
_BLOCKED = 30.0


def parameters_of(url: str, ca: str = "") -> pika.URLParameters:
    """Parse a URL. What is wrong with it is not repeated: any part of it may be a piece of the password.

    ``ca`` is a PEM file of authorities that the broker's certificate is verified with instead of the well-known ones.
    """
    expanded = os.path.expandvars(url)
    try:
        if re.match("amqps?://", expanded):
            parameters = pika.URLParameters(expanded)
            if ca and parameters.ssl_options:
                parameters.ssl_options = _trusting(ca, parameters)
            return parameters
    except (ValueError, TypeError, SyntaxError, OSError):
        pass
    raise ConfigError(
        "--amqp-url cannot be understood: amqp[s]://USER:PASSWORD@HOST:PORT/VHOST is needed, "
        "with special characters of the password and the virtual host written as %XX"
    )


def _trusting(ca: str, parameters: pika.URLParameters) -> pika.SSLOptions:
    try:
        context = ssl.create_default_context(cafile=ca)
    except (ssl.SSLError, OSError) as error:
        raise ConfigError(f"--amqp-ca is {ca!r}, which holds no certificates in PEM format") from error
    given = parameters.ssl_options.context
    context.verify_mode, context.check_hostname = given.verify_mode, given.check_hostname
    return pika.SSLOptions(context, parameters.ssl_options.server_hostname or parameters.host)


# What goes wrong, in words. They are formatted with pika's error, without its wrappers, and with the parameters.

_REFUSALS: dict[type[BaseException], str] = {
    exceptions.ProbableAuthenticationError: "refuses the name or password of user {at.credentials.username!r}",
    exceptions.ProbableAccessDeniedError: "does not let user {at.credentials.username!r} into virtual host "
    "{at.virtual_host!r} ({error.args[0]})",
    exceptions.IncompatibleProtocolError: "does not speak AMQP: check the port",
    exceptions.ChannelClosedByBroker: "does not allow that: {error.reply_text}",
    ssl.SSLCertVerificationError: "has a certificate that is not trusted ({error.verify_message}): set --amqp-ca",
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


def fault_of(error: BaseException, parameters: pika.URLParameters) -> ConfigError | Unavailable:
    """Return pika's error as one of ours."""
    while inner := _wrapped(error):
        error = inner
    words = next((words for kind, words in _REFUSALS.items() if isinstance(error, kind)), "")
    ours = ConfigError if words else Unavailable
    words = words or next(words for kind, words in _FAILURES.items() if isinstance(error, kind))
    return ours(f"{name_of(parameters)} {words.format(error=error, at=parameters)}")


def _wrapped(error: BaseException) -> BaseException | None:
    """Return what an error of pika's is about: a connection's failure comes in up to three layers."""
    inner = [getattr(error, "exception", None), *getattr(error, "exceptions", ())[-1:], *error.args]
    return next((each for each in inner if isinstance(each, BaseException)), None)


def name_of(parameters: pika.URLParameters) -> str:
    """Name a broker, without its user."""
    return f"RabbitMQ at {parameters.host}:{parameters.port}"


def publish(url: str, queue: str, body: bytes, *, ca: str = "") -> None:
    """Publish a message as StudioML clients do: exchange, queue and binding are made if need be (protocol section 3).

    Blocks until the broker has the message. Raises ConfigError when the operator has to act, else Unavailable.
    """
    parameters = parameters_of(url, ca)
    parameters.blocked_connection_timeout = parameters.blocked_connection_timeout or _BLOCKED
    try:
        connection = pika.BlockingConnection(parameters)
        try:
            _publish(connection, queue, body)
        finally:
            if connection.is_open:
                connection.close()
    except (exceptions.AMQPError, OSError) as error:
        raise fault_of(error, parameters) from error


def waiting(url: str, queues: Iterable[str], *, ca: str = "") -> dict[str, int | None]:
    """Count the messages that wait in queues, None for one that is not there: each is declared passively.

    Blocks; without queues it tells whether the broker lets us in. Raises as ``publish``.
    """
    parameters = parameters_of(url, ca)
    try:
        with closing(pika.BlockingConnection(parameters)) as connection:
            return {queue: _depth(connection, queue) for queue in queues}
    except (exceptions.AMQPError, OSError) as error:
        raise fault_of(error, parameters) from error


def _publish(connection: pika.BlockingConnection, queue: str, body: bytes) -> None:
    if not _exists(connection, queue):
        connection.channel().queue_declare(queue)
    channel = connection.channel()
    channel.exchange_declare(EXCHANGE, "topic", durable=True, auto_delete=True)
    channel.queue_bind(queue, EXCHANGE, PREFIX + queue)
    channel.confirm_delivery()
    properties = BasicProperties(content_type="application/json", app_id="studioml", delivery_mode=2)
    channel.basic_publish(EXCHANGE, PREFIX + queue, body, properties, mandatory=True)


def _exists(connection: pika.BlockingConnection, queue: str) -> bool:
    """A queue that is there is left as it is, for its properties are its owner's affair."""
    return _depth(connection, queue) is not None


def _depth(connection: pika.BlockingConnection, queue: str) -> int | None:
    try:
        return int(connection.channel().queue_declare(queue, passive=True).method.message_count)
    except exceptions.ChannelClosedByBroker as error:
        if error.reply_code != 404:
            raise
        return None
