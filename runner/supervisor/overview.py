"""The supervisor's state, put together for whoever looks at it. Only the loop calls it, and only when somebody does."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from runner import __version__
from runner.machine.allocate import Allocator
from runner.machine.disk import Disk
from runner.monitoring.journal import Journal
from runner.monitoring.status import Experiment, Queue, Snapshot, Source, Status, bars
from runner.place import Place
from runner.queues.base import QueueServer
from runner.supervisor.admission import Queues
from runner.supervisor.reasons import Reasons
from runner.supervisor.running import Running


@dataclass(frozen=True)
class Overview:
    """Everything that a supervisor works with, and somebody might want to know of."""

    queues: Queues
    allocator: Allocator
    disk: Disk
    reasons: Reasons
    journal: Journal
    home: Path
    host: str = field(default_factory=platform.node)
    began: float = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "began", self.journal.now())

    def snapshot(self, running: Sequence[Running], *, idle: str) -> Snapshot:
        """Return what is to be seen now; ``idle`` says why no work is taken, "" if it is."""
        names = {queue for server in self.queues.servers for queue in server.queues()}
        status = Status(
            version=__version__,
            host=self.host,
            process=os.getpid(),
            time=self.journal.now(),
            started=self.began,
            idle=idle,
            bars=bars(self.allocator),
            experiments=tuple(self._experiment(each) for each in running),
            queues=tuple(
                self._queue(server, name, [each for each in running if each.queue == name])
                for server in self.queues.servers
                for name in sorted(server.queues())
            ),
            sources=tuple(source for server in self.queues.servers for source in _sources(server)),
            outcomes=self.journal.outcomes,
            periods=self.journal.periods(),
            kept=self.disk.kept,
        )
        return Snapshot(status, self.journal.counts.copied(names))

    def _experiment(self, running: Running) -> Experiment:
        now, clock = self.journal.now(), self.journal.clock()
        cards = self.allocator.gpus.named(running.allocation.gpus)
        wanted, place = running.request, running.child.place
        log = Place(self.home, place).log(labelled="output" in wanted.artifacts) if place else ""
        return Experiment(
            queue=running.queue,
            queue_type=running.server.kind,
            key=wanted.key,
            project=running.project,
            attempt=running.number,
            phase=running.phase,
            since=now - (clock - running.since),
            phase_since=now - (clock - running.phase_since),
            resources=f"{running.need} ({cards})" if cards else f"{running.need}",
            log=str(log),
        )

    def _queue(self, server: QueueServer, name: str, running: Sequence[Running]) -> Queue:
        pause, held = self.queues.waiting(name)
        deliveries = [delivery for each in running for delivery in each.deliveries if not delivery.lost]
        windows = [window for window in (each.window for each in deliveries) if window is not None]
        return Queue(
            name,
            server.kind,
            running=len(running),
            why=self.reasons.of(name),
            pause=pause,
            held=held,
            holding=max((self.journal.clock() - each.since for each in running), default=None),
            window=min(windows, default=None),
        )


def _sources(server: QueueServer) -> list[Source]:
    return [Source(each.name, server.kind, each.succeeded, each.failed, each.trouble) for each in server.refreshed()]
