"""Putting the runner together: from its options to a working supervisor."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from runner import __version__
from runner.lifecycle import Signals
from runner.loop import Loop
from runner.machine import inventory
from runner.machine.allocate import Allocator
from runner.place import make_home, sweep
from runner.queues import matcher
from runner.queues.base import QueueServer
from runner.sandbox import interpreters
from runner.settings import Settings
from runner.supervisor import Supervisor

log = logging.getLogger(__name__)


def serve(settings: Settings, *, clock: Callable[[], float]) -> int:
    """Run experiments until told to stop; return the exit status. Raises ConfigError."""
    make_home(settings.home)
    sweep(settings.home, keep=settings.debug)
    allocator = Allocator(
        inventory.take_stock(
            settings.home, max_cores=settings.max_cores, max_mem=settings.max_mem, max_disk=settings.max_disk
        )
    )
    pythons = ", ".join(map(str, interpreters.there())) or "none"
    log.info("studio-runner %s: %s to give; Pythons for experiments: %s", __version__, allocator.total, pythons)
    with Signals() as signals, closing(Loop()) as loop:
        servers = _servers(settings, loop)
        Supervisor(settings, servers, loop=loop, signals=signals, allocator=allocator, clock=clock).run()
    return 0


def _servers(settings: Settings, loop: Loop) -> list[QueueServer]:
    wanted = matcher(settings.queue_match, settings.queue_mismatch)
    servers: list[QueueServer] = []
    if settings.queue_root:
        from runner.queues.files import Directory  # noqa: PLC0415 -- only who uses a technology pays for it

        servers.append(Directory(Path(settings.queue_root), wanted))
    if settings.amqp_url:
        from runner.queues.rabbitmq import RabbitMQ  # noqa: PLC0415

        servers.append(RabbitMQ(loop, settings.amqp_url, settings.amqp_mgt_url, wanted))
    return servers
