"""Reports: what an experiment does, told to its experimenter on the response queue (protocol section 7).

They are best effort: a broker that is away delays nothing, and what it misses is kept for a while.
"""

from __future__ import annotations

import logging
import platform
import tempfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from runner.crypto.keys import KeyDirectory
from runner.errors import ConfigError
from runner.events import Finished, Line
from runner.message.request import Request
from runner.queues import responses_of
from runner.queues.base import QueueServer
from runner.queues.settle import Decision
from runner.reporting.outbox import Outbox
from runner.reporting.report import Reporter, Severity, State

if TYPE_CHECKING:
    from runner.crypto.sealing import Sealer

log = logging.getLogger(__name__)

# How often a queue is told that work is looked for in it, in seconds.
_SCANNING = 60.0


class Stream:
    """The reports of one experiment; they go nowhere where there is nobody to hear them."""

    def __init__(self, reporter: Reporter, send: Callable[[bytes], None] | None) -> None:
        self._reporter, self._send = reporter, send

    @property
    def heard(self) -> bool:
        """True when there is somebody."""
        return self._send is not None

    def begin(self, accession: str) -> None:
        """An attempt begins, whose metadata has that name."""
        if self._send:
            self._reporter = self._reporter.named(accession)
            self._tell(self._reporter.logging("start", Severity.INFO, {"success": "True"}))
            self._tell(self._reporter.progress(State.PRESTART))

    def running(self) -> None:
        """The experiment's own process runs."""
        if self._send:
            self._tell(self._reporter.progress(State.STARTED))

    def line(self, event: Line) -> None:
        """A line of output came."""
        if not self._send:
            return
        if event.dropped:
            missing = f"{event.dropped} lines were too many to be reported"
            self._tell(self._reporter.logging(missing, Severity.WARNING))
        severity = Severity.ERROR if event.error else Severity.INFO
        self._tell(self._reporter.logging(event.text, severity))
        if event.document:
            self._tell(self._reporter.json(event.text))

    def stopping(self) -> None:
        """The attempt is told to stop."""
        if self._send:
            self._tell(self._reporter.progress(State.STOPPING))

    def end(self, finished: Finished, decision: Decision) -> None:
        """The attempt is over, and perhaps the experiment."""
        if not self._send or finished.outcome in ("elsewhere", "repeated"):
            return
        well = finished.outcome == "completed"
        if well:
            self._tell(self._reporter.progress(State.SUCCESS))
        elif decision is Decision.GIVE_BACK:
            self._tell(self._reporter.progress(State.STOPPING, error=finished.sentence))
        else:
            self._tell(self._reporter.progress(State.FAILED, error=finished.sentence, code=finished.exit_status or 1))
        severity = Severity.INFO if well else Severity.ERROR
        self._tell(self._reporter.logging("stop", severity, {"success": str(well), "verdict": finished.verdict}))

    def _tell(self, report: bytes) -> None:
        if self._send:
            self._send(report)


class Reports:
    """All reports of one runner. ``keys`` are those of who reads them; ``clock`` gives monotonic seconds."""

    def __init__(self, keys: KeyDirectory, clock: Callable[[], float]) -> None:
        self._keys, self._clock = keys, clock
        self._host = platform.node()
        self._outboxes: dict[str, tuple[QueueServer, Outbox]] = {}
        self._told: OrderedDict[str, float] = OrderedDict()  # the longest ago first
        self._bad: set[str] = set()
        self._spool = Path(tempfile.gettempdir())

    def stream(self, server: QueueServer, queue: str, wanted: Request) -> Stream:
        """Return the reports of an experiment from a queue."""
        return Stream(Reporter(wanted.key, "", self._host), self._way_to(server, queue))

    def scanning(self, server: QueueServer, queue: str) -> None:
        """Work is looked for in a queue."""
        now = self._clock()
        if now < self._told.get(queue, 0.0) + _SCANNING:
            return
        while self._told and now >= next(iter(self._told.values())) + _SCANNING:
            self._told.popitem(last=False)
        self._told[queue] = now
        if send := self._way_to(server, queue):
            send(Reporter("", "", self._host).logging("scanning queue", Severity.INFO, {"queue": queue}))

    def pump(self) -> None:
        """Send what the servers take; what was for a queue that is deleted is forgotten."""
        for response, (server, outbox) in list(self._outboxes.items()):
            if server.deleted(response):
                outbox.close()
                del self._outboxes[response]
            else:
                outbox.pump()

    def close(self) -> None:
        """Send what goes at once, and forget the rest."""
        for _, outbox in self._outboxes.values():
            while outbox.pump():
                pass
            outbox.close()

    def _way_to(self, server: QueueServer, queue: str) -> Callable[[bytes], None] | None:
        """Return how to send reports of a queue, sealed; None when there is no queue for them, or no key."""
        if not any(map(self._keys.find, responses_of(queue))):
            return None  # at thousands of queues, to list them all for each of them takes minutes
        there = server.others()
        response = next((name for name in responses_of(queue) if name in there), None)
        sealer = self._sealer(response) if response else None
        if response is None or sealer is None:
            return None
        return lambda report: self._put(server, response, sealer.seal(report))

    def _put(self, server: QueueServer, response: str, body: bytes) -> None:
        if response not in self._outboxes:
            if server.deleted(response):
                return
            outbox = Outbox(response, lambda body: server.publish(response, body), self._spool)
            self._outboxes[response] = server, outbox
        self._outboxes[response][1].put(body)

    def _sealer(self, response: str) -> Sealer | None:
        text = self._keys.text_for(response)
        if text is None:
            return None
        from runner.crypto.sealing import Sealer, read_public_key  # noqa: PLC0415 -- only who reports pays for it

        try:
            return Sealer(read_public_key(text))
        except ConfigError as error:
            if text not in self._bad:
                self._bad.add(text)
                log.error("there are no reports on queue %s: %s", response, error)
            return None
