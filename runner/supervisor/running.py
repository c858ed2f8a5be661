"""One attempt under way, as the supervisor sees it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Thread

from runner.events import (
    Advanced,
    Cached,
    Checkpoint,
    Event,
    Failing,
    Finished,
    Leased,
    Line,
    Moved,
    Phase,
    Started,
    Used,
)
from runner.log import Adapter, about, mask, unmask
from runner.machine.allocate import Allocation, Need
from runner.machine.disk import Claim
from runner.message.request import Request
from runner.monitoring.journal import Journal
from runner.order import GpuState
from runner.place import Place, clear
from runner.queues.base import Delivery, QueueServer
from runner.queues.settle import Decision, settle
from runner.reporting.reports import Stream
from runner.reporting.slack import SILENT, Notices
from runner.secrets.masking import Secrets
from runner.secrets.redaction import secrets_of
from runner.supervisor.child import Child
from runner.supervisor.intake import Received

log = logging.getLogger(__name__)

# In characters.
_LONGEST = 200


@dataclass
class Running:
    """Whose message it is, what it holds, and since when (monotonic seconds).

    ``deliveries`` are all those of its one message, which a broker may have sent again; the first ones may be lost.
    ``disk`` and ``gpu_memory`` are what it is known to use, in bytes. ``doubted``: the attempt asks how its GPUs are.
    ``fault``: that is how one of them broke, and it was told.
    """

    received: Received
    allocation: Allocation
    server: QueueServer
    deliveries: list[Delivery]
    child: Child
    stream: Stream
    since: float
    number: int
    journal: Journal
    notices: Notices = SILENT
    deleted_since: float | None = None
    leased: bool = False
    told_to_stop: bool = False
    disk: int = 0
    gpu_memory: int = 0
    doubted: bool = False
    fault: str = ""
    phase: str = "start"
    phase_since: float = 0.0

    def __post_init__(self) -> None:
        self.child.tell = self._hear
        mask(id(self), Secrets.of(secrets_of(self.request.document)))
        self.phase_since = self.since

    @property
    def request(self) -> Request:
        """What the message asks for."""
        return self.received.request

    @property
    def queue(self) -> str:
        """The queue that the message came from."""
        return self.deliveries[0].queue

    @property
    def need(self) -> Need:
        """What it asked for."""
        return self.allocation.need

    @property
    def log(self) -> Adapter:
        """A log whose events say which attempt they are about."""
        key, verbose = self.request.key, self.request.verbose
        return about(log, experiment=key, queue=self.queue, attempt=self.number, verbose=verbose)

    @property
    def project(self) -> str:
        """The project's name, as far as people read it; "" if it has none."""
        return (self.request.project or "")[:_LONGEST]

    @property
    def claim(self) -> Claim:
        """What it has of the disk."""
        return Claim(self.need.hdd, self.disk)

    @property
    def lost(self) -> bool:
        """True when the broker has taken the message back: it will come again, here or elsewhere."""
        return all(delivery.lost for delivery in self.deliveries)

    def __str__(self) -> str:
        return f"{self.queue}: experiment {self.request.key!r}, attempt {self.number}"

    def adopt(self, delivery: Delivery) -> None:
        """Hold one more delivery of the message."""
        self.deliveries = [each for each in self.deliveries if not each.lost] + [delivery]
        self.journal.redelivered()
        self.log.info("%s came again while it runs: its new delivery is kept", self)

    def keep_alive(self) -> None:
        """Tell the broker that the message is worked on."""
        for delivery in self.deliveries:
            delivery.keep_alive()

    def enter(self, phase: str) -> None:
        """A phase begins, "" with the end of all; one phase may be told in pieces."""
        if phase == self.phase:
            return
        now = self.journal.clock()
        if self.phase != "start":
            self.journal.phase(self.phase, now - self.phase_since)
        self.phase, self.phase_since = phase, now

    def stop(self) -> None:
        """Ask the attempt to end its experiment, store the results and go."""
        self.told_to_stop = True
        self.stream.stopping()
        self.child.stop()

    def uses_gpus(self, memory: int) -> None:
        """It is seen to use so many bytes of its GPUs' memory; the attempt wants to know the most."""
        if memory > self.gpu_memory:
            self.gpu_memory = memory
            self.child.tell_gpus(GpuState(None, memory))

    def gpu_broke(self, fault: str) -> None:
        """Have the attempt end, and not count."""
        self.fault = fault
        log.warning("%s is stopped: %s", self, fault)
        self.child.tell_gpus(GpuState(fault))

    def died(self, status: int) -> bool:
        """Tell whether the attempt's process, which is gone, had no chance to say how it ended."""
        return self.child.finished is None or self.child.finished.status != status

    def outcome(self, status: int) -> Finished:
        """Return how the attempt ended, whose process is gone."""
        finished = self.child.finished
        if finished is None or self.died(status):
            how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status} and no word"
            sentence = f"experiment {self.request.key!r}, attempt {self.number}, was lost: its process {how}"
            return Finished("unavailable", sentence, verdict="machine")
        return finished

    def clear_away(self, home: Path, *, keep: bool) -> None:
        """Remove what an attempt that died has left: processes now, files in a thread, for they may be many."""
        self.child.kill()
        if self.child.place:
            Thread(target=partial(clear, Place(home, self.child.place), keep=keep), daemon=True).start()

    def settle(self, decision: Decision) -> None:
        """Decide the message's fate, for all its deliveries. To be called last."""
        for delivery in self.deliveries:
            settle(delivery, decision)
        unmask(id(self))

    def _hear(self, event: Event) -> None:
        """Log what the attempt tells, and pass on what others want to know."""
        hearers: dict[type[Event], Callable[..., None]] = {
            Leased: self._heard_leased,
            Phase: self._heard_phase,
            Moved: self.journal.moved,
            Cached: self._heard_cached,
            Used: self._heard_used,
            Advanced: lambda event: self.log.info("%s: %s", self, event.sentence),
            Started: lambda _event: self.stream.running(),
            Line: self.stream.line,
            Checkpoint: self._heard_checkpoint,
            Failing: self._heard_failing,
        }
        if type(event) in hearers:
            hearers[type(event)](event)

    def _heard_leased(self, event: Leased) -> None:
        if event.attempt == 1:
            self.journal.waited(self.request.time_added)
        self.leased, self.number = True, event.attempt
        self.log.info("%s starts (%s)", self, self.need)
        self.stream.begin(event.accession)
        self.notices.begin(self.number)

    def _heard_phase(self, event: Phase) -> None:
        self.log.debug("%s: phase %s", self, event.name)
        self.enter(event.name)

    def _heard_cached(self, event: Cached) -> None:
        self.journal.cached(event)
        how = "was in the cache" if event.hit else "was not in the cache, and is fetched"
        self.log.info("%s: artifact %r %s (%s)", self, event.label, how, event.hash)

    def _heard_used(self, event: Used) -> None:
        self.disk = event.disk

    def _heard_failing(self, _event: Failing) -> None:
        self.doubted = True

    def _heard_checkpoint(self, event: Checkpoint) -> None:
        if event.error:
            self.log.warning("%s: a checkpoint failed, the next one will try again: %s", self, event.error)
        else:
            self.log.debug("%s: checkpoint, %d artifacts stored", self, event.uploaded)
