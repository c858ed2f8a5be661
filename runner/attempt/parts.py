"""What one attempt is made of, put together from its order before anything happens."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from runner import events
from runner.artifacts.artifacts import Artifacts
from runner.artifacts.budget import Budget
from runner.artifacts.cache import Cache
from runner.artifacts.cache_entries import Entries
from runner.artifacts.progress import Progress
from runner.attempt import record
from runner.attempt.console import STANDARD_ERROR
from runner.attempt.disk_use import DiskUse
from runner.attempt.lease import Leasehold
from runner.attempt.metadata_files import MetadataFiles
from runner.attempt.record import Bookkeeping
from runner.attempt.remarks import Remarks
from runner.attempt.teller import Teller
from runner.attempt.watch import Watch
from runner.attempt.worker import Worker
from runner.log import always_about, mask
from runner.loop import Loop
from runner.message import request
from runner.order import Order
from runner.place import Place
from runner.retry import Patience
from runner.storage.metered import Meter
from runner.storage.stores import Stores


class Parts:
    """The parts of one attempt at one request, in one directory; and which attempt it is, and how far it has come.

    ``stores`` are talked to from the loop, before the experiment runs, and ``back`` from the worker afterwards: one
    connection each. ``began`` is in seconds since 1970. Raises RequestError, and MachineError when the disk is full.
    """

    def __init__(self, order: Order, place: Place, *, loop: Loop, watch: Watch, teller: Teller) -> None:
        self.order, self.place, self.loop, self.watch, self.teller = order, place, loop, watch, teller
        self.secrets, barred = order.secrets()
        teller.secrets = self.secrets
        mask(self, self.secrets)
        self.request = request.from_document(order.document, allow_env_secrets=order.options.allow_env_secrets)
        self.began = time.time()
        self.phase = ""
        self.number_is(1 + order.failures)

        options = order.options.of_stores
        self._meter = Meter()
        self.stores = Stores(options, sleep=watch.pause, meter=self._meter)
        self.back = Stores(options, sleep=time.sleep, meter=self._meter)
        self.worker = Worker(loop)

        beating = Stores(replace(options, patience=Patience(0)), sleep=time.sleep)
        self.lease = Leasehold(self.request, loop, reading=self.stores, writing=beating, lost=watch.end)
        brief, lasting = (
            Stores(replace(options, patience=Patience(min(options.patience.total, each))), sleep=time.sleep)
            for each in (record.PATIENCE, record.LAST_PATIENCE)
        )
        self.book = Bookkeeping(self.request.record, brief, loop, stopped=watch.cancel, lasting=lasting)

        asked = self.request.resources.hdd
        self.disk = DiskUse(place, asked, loop=loop, watch=watch, tell=lambda used: teller.tell(events.Used(used)))
        self.cache = self._open_cache()
        looking = order.options.echo and os.isatty(STANDARD_ERROR)
        self.remarks = Remarks(loop, teller.tell, self.request.verbose, looking=looking)
        self.progress = Progress(loop, self.remarks.advanced, bar=STANDARD_ERROR if looking else None)
        artifacts = list(self.request.artifacts.values())
        self.artifacts = Artifacts(artifacts, place, Budget(asked or None), self.cache, self.progress, barred=barred)
        self.metadata = MetadataFiles(order, self.request, place, began=self.began, secrets=self.secrets)

    def _open_cache(self) -> Cache | None:
        given = self.order.options
        if not given.cache_dir:
            return None
        entries = Entries(Path(given.cache_dir), given.cache_size, pause=self.watch.pause)
        tell: Callable[[str, str, bool], None] = lambda *words: self.teller.tell(events.Cached(*words))  # noqa: E731
        # In debug mode, directories are left behind for people to look at; those of another user are not as they were.
        return Cache(entries, self.place.scratch, tell, lending=not (given.debug or given.run_as))

    @property
    def name(self) -> str:
        """What sentences call the attempt."""
        return f"experiment {self.request.key!r}, attempt {self.number},"

    @property
    def last(self) -> bool:
        """Whether no other attempt may follow when this one fails."""
        return self.number >= self.order.allowed

    def number_is(self, number: int) -> None:
        """Count this attempt as that one, from 1, also in the log."""
        self.number = number
        always_about(
            experiment=self.request.key,
            queue=self.order.queue,
            attempt=number,
            verbose=self.request.verbose,
        )

    def enter(self, phase: str) -> None:
        """Begin a phase (see events.Phase), and tell it."""
        self.phase = phase
        self.remarks.detail(f"phase {phase}")
        self.tell_moved()
        self.teller.tell(events.Phase(phase))

    def tell_moved(self) -> None:
        """Tell what stores have sent and got since this was told last."""
        for scheme, (fetched, stored) in self._meter.taken().items():
            self.teller.tell(events.Moved(scheme, fetched, stored))
