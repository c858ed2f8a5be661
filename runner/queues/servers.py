"""Opening the queue servers that the options name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from runner.loop import Loop
from runner.options.settings import ServerSettings, Settings
from runner.queues import matcher
from runner.queues.base import QueueServer
from runner.queues.sqs_account import Options as SQSOptions


def work_queues(settings: Settings) -> Callable[[str], bool]:
    """Return the test for names of queues that are read for work: those that are named, or else those that match."""
    if settings.queue:
        return lambda name: name in settings.queue
    return matcher(settings.queue_match, settings.queue_mismatch)


def sqs_options(options: ServerSettings) -> SQSOptions:
    """Pick what SQS needs to know."""
    return SQSOptions(options.sqs_certs, options.sqs_region, options.sqs_endpoint, options.sqs_timeout)


def open_servers(
    options: ServerSettings, loop: Loop, wanted: Callable[[str], bool], names: tuple[str, ...] = ()
) -> list[QueueServer]:
    """Return a server for each technology that has an option set. Raises ConfigError.

    With ``names``, these are all the queues that matter.
    """
    servers: list[QueueServer] = []
    if options.queue_root:
        from runner.queues.files import Directory  # noqa: PLC0415 -- only who uses a technology pays for it

        servers.append(Directory(Path(options.queue_root), wanted))
    if options.amqp_url:
        from runner.queues.rabbitmq import Address, RabbitMQ  # noqa: PLC0415

        address = Address(options.amqp_url, options.amqp_mgt_url, options.amqp_ca, names)
        servers.append(RabbitMQ(loop, address, wanted))
    if options.sqs_certs or options.sqs_region:
        from runner.queues.sqs import SQS  # noqa: PLC0415

        servers.append(SQS(loop, sqs_options(options), wanted, names))
    return servers
