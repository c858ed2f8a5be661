"""One attempt at an experiment: fetch → prepare → run → return. A process of its own; ``events.py`` is its contract."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable, Collection
from concurrent.futures import Future
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

from runner import events, request
from runner.archive import Budget
from runner.artifacts import LOG_LABEL, LOG_NAME, METADATA, Artifacts
from runner.cache import Cache
from runner.cache_entries import Entries
from runner.checkpoints import Checkpoints
from runner.console import STDERR, Console
from runner.disk_use import DiskUse
from runner.errors import ExperimentError, MachineError, RunnerError, Unavailable
from runner.events import Finished, Order
from runner.lease import Elsewhere, Leasehold, Repeated
from runner.loop import Loop
from runner.metadata_files import MetadataFiles, stamp
from runner.place import Place
from runner.program import Programs
from runner.record import Bookkeeping
from runner.retry import Patience
from runner.sandbox.base import Job, Sandbox
from runner.sandbox.venv import VirtualEnvironment
from runner.storage.base import StoreOptions
from runner.storage.stores import Stores
from runner.teller import Teller
from runner.units import format_duration
from runner.watch import Cancelled, Orphaned, Stopped, Watch
from runner.worker import Worker

log = logging.getLogger(__name__)

# Whose doing an error was.
_VERDICTS: tuple[tuple[type[RunnerError], str], ...] = (
    (ExperimentError, "failed"),
    (Unavailable, "unavailable"),
    (MachineError, "misfit"),
    (Cancelled, "cancelled"),
    (Stopped, "stopped"),
    (Elsewhere, "elsewhere"),
    (Repeated, "repeated"),
)


class Attempt:
    """One attempt at one request, in one directory."""

    def __init__(self, order: Order, place: Place, *, loop: Loop, watch: Watch, teller: Teller) -> None:
        self._order, self._place, self._loop, self._watch = order, place, loop, watch
        self._teller, self._tell = teller, teller.tell
        self._request = request.from_document(order.document, allow_env_secrets=order.options.allow_env_secrets)
        self._began = time.time()
        # Before the experiment runs, stores are used from here, afterwards from the worker: one connection each.
        options = store_options(order)
        self._stores = Stores(options, sleep=watch.pause)
        self._back = Stores(options, sleep=time.sleep)
        beating = Stores(replace(options, patience=Patience(0)), sleep=time.sleep)
        self._lease = Leasehold(self._request, loop, reading=self._stores, writing=beating)
        self._attempt = 1 + order.failures
        self._worker = Worker(loop)
        self._book = Bookkeeping(self._request.record, Stores(options, sleep=time.sleep), loop, stopped=watch.cancel)
        budget = Budget(self._request.resources.hdd or None)
        self._disk = DiskUse(
            place, self._request.resources.hdd, loop=loop, watch=watch, tell=lambda used: self._tell(events.Used(used))
        )
        self._cache = self._open_cache()
        self._artifacts = Artifacts(list(self._request.artifacts.values()), place, budget, self._cache)
        self._metadata = MetadataFiles(order, self._request, place, began=self._began)
        self._checkpoints = Checkpoints(
            self._request.artifacts.values(),
            self._request.save_frequency,
            due=self._checkpoint,
            store=partial(self._artifacts.upload, self._back),
            stored=self._checkpointed,
        )

    def run(self) -> Finished:
        """Make the attempt, and return how it ended. Raises Orphaned, with nothing left running."""
        self._watch.limit(self._request.deadline(self._began), _limits(self._request))
        with ExitStack() as stack:
            say: Callable[[str], None] = _nobody_hears
            try:
                self._claim()
                self._fetch(METADATA, LOG_LABEL)
                console = stack.enter_context(Console(self._log_path(), self._hear))
                say = console.say
                self._fetch(*(label for label in self._request.artifacts if label not in (METADATA, LOG_LABEL)))
                programs = Programs(self._loop, self._watch, console, apart=self._order.reported)
                sandbox = self._prepare(programs, console)
                self._execute(programs, sandbox)
                finished = Finished("completed", f"{self._name} completed")
            except Orphaned:
                raise
            except RunnerError as failure:
                error = self._disk.blame(failure)
                finished = Finished(_verdict(error), f"{self._name} {_how(error)}: {error}")
            with suppress(MachineError):  # a full disk, perhaps; the supervisor's log has it too
                say(finished.sentence)
            return self._return(finished)

    def close(self) -> None:
        """Take back what the cache has lent, once nothing of the experiment runs any more."""
        if self._cache:
            self._cache.close()

    def _open_cache(self) -> Cache | None:
        given = self._order.options
        if not given.cache_dir:
            return None
        entries = Entries(Path(given.cache_dir), given.cache_size, pause=self._watch.pause)
        tell: Callable[[str, str, bool], None] = lambda *words: self._tell(events.Cached(*words))  # noqa: E731
        # In debug mode, directories are left behind for people to look at.
        return Cache(entries, self._place.scratch, tell, lending=not given.debug)

    @property
    def _name(self) -> str:
        return f"experiment {self._request.key!r}, attempt {self._attempt},"

    @property
    def _last(self) -> bool:
        return self._attempt >= self._order.allowed

    def _claim(self) -> None:
        """Make sure that nobody else runs the experiment, and that it is not over; learn which attempt this is."""
        self._attempt = self._lease.claim(failures=self._order.failures, redeliveries=self._order.redeliveries)
        self._tell(events.Leased(self._attempt, self._metadata.accession))

    def _fetch(self, *labels: str) -> None:
        """Fetch artifacts; the log and the metadata come first, so that what goes wrong then can be told in them."""
        self._tell(events.Phase("fetch"))
        if "_singularity" in self._request.artifacts:
            raise MachineError("it wants a Singularity container, which this version cannot run yet")
        for label in labels:
            if label in self._request.artifacts:
                self._artifacts.fetch(self._request.artifacts[label], self._stores, self._watch.check)

    def _hear(self, line: str, stream: str) -> None:
        document = self._metadata.hear(line)
        if self._order.reported:
            self._teller.line(line, error=stream == STDERR, document=document)

    def _log_path(self) -> Path:
        # Clients' code looks at all that lies beside its workspace: there is an "output" only if the message has one.
        has_log = LOG_LABEL in self._request.artifacts
        return (self._place.label(LOG_LABEL) if has_log else self._place.scratch) / LOG_NAME

    def _prepare(self, programs: Programs, console: Console) -> Sandbox:
        self._tell(events.Phase("prepare"))
        if self._request.filename != "-m" and not (self._place.workspace / self._request.filename).is_file():
            raise ExperimentError(f"the workspace has no file {self._request.filename!r}")
        job = Job(self._request, self._order, self._place, programs.run, console.say, self._watch.pause)
        sandbox = VirtualEnvironment(job)
        sandbox.prepare()
        self._metadata.add(pipdeptree=sandbox.packages())
        return sandbox

    def _execute(self, programs: Programs, sandbox: Sandbox) -> None:
        self._tell(events.Phase("run"))
        argv, env = sandbox.command()
        self._metadata.add(start_time=stamp())
        status = programs.run(argv, env, self._place.workspace, started=self._begin)
        if status:
            what = self._request.filename if self._request.filename != "-m" else f"module {self._request.args[0]}"
            how = f"was killed by {_signal_name(-status)}" if status < 0 else f"ended with exit status {status}"
            raise ExperimentError(f"{what} {how}")

    def _begin(self, pid: int) -> None:
        """The experiment's process runs: from here on there is something to checkpoint, and somebody to tell."""
        self._tell(events.Started(pid))
        self._disk.watch()
        self._book.begin(time_started=time.time())
        self._checkpoints.begin(self._loop, self._worker)

    def _checkpoint(self, labels: Collection[str]) -> None:
        if METADATA in labels:
            self._metadata.write("running")

    def _checkpointed(self, result: Future[int]) -> None:
        error = result.exception()
        if error is None:
            self._tell(events.Checkpoint(result.result()))
            self._book.note("running", time_last_checkpoint=time.time())
        elif isinstance(error, RunnerError):
            self._tell(events.Checkpoint(0, str(error)))
        else:
            raise error

    # At the end

    def _return(self, finished: Finished) -> Finished:
        """Store everything; results that cannot be stored mean that the attempt did not happen."""
        self._watch.returning()
        self._checkpoints.end()
        self._book.end()
        self._disk.end()
        if finished.verdict in ("completed", "failed", "cancelled", "stopped"):
            self._tell(events.Phase("return"))
            status = "completed" if finished.verdict == "completed" else "failed"
            try:
                self._metadata.write(status, stop_time=stamp())
                self._worker.wait(partial(self._artifacts.upload, self._back), self._watch)
            except (ExperimentError, Unavailable, MachineError) as error:
                finished = self._not_stored(finished, error)
        finished = replace(finished, last=finished.verdict == "failed" and self._last)
        if finished.verdict not in ("elsewhere", "repeated"):
            self._settle_record(finished)
            self._leave(finished)
        return finished

    def _leave(self, finished: Finished) -> None:
        """Leave word for whoever gets the message next, if anybody does."""
        failures = self._attempt - (finished.verdict != "failed")
        over = finished.verdict in ("completed", "cancelled")
        # After the last failure its message is sent again only by somebody who wants it to be tried anew.
        self._lease.leave(self._watch, over=over, failures=0 if finished.last else failures, sentence=finished.sentence)

    def _not_stored(self, finished: Finished, error: RunnerError) -> Finished:
        sentence = f"{finished.sentence}, but its results could not be stored: {error}"
        if finished.verdict == "completed":
            return Finished(_verdict(error), sentence)
        if finished.verdict == "failed" and not isinstance(error, ExperimentError):
            return Finished("unavailable", sentence)
        return Finished(finished.verdict, sentence)

    def _settle_record(self, finished: Finished) -> None:
        """Tell the client how it ended, or that it will be tried again."""
        over = finished.verdict in ("completed", "cancelled") or finished.last
        status = "stopped" if finished.verdict == "cancelled" else "finished" if over else "waiting"
        outcome = {"verdict": finished.verdict, "sentence": finished.sentence, "accession": self._metadata.accession}
        times = {"time_finished": time.time()} if over else {}
        self._book.settle(self._watch, status, outcome=outcome, **times)


def _nobody_hears(_sentence: str) -> None:
    """The log could not be opened: its sentence goes to the supervisor only."""


def _verdict(error: RunnerError) -> str:
    return next((verdict for kind, verdict in _VERDICTS if isinstance(error, kind)), "unavailable")


def _how(error: RunnerError) -> str:
    words = {"failed": "failed", "misfit": "cannot run on this machine", "elsewhere": "is not needed here"}
    return words.get(_verdict(error), "was given up")


def _limits(wanted: request.Request) -> str:
    """Say in words where the deadline comes from."""
    given = {"max_duration": wanted.max_duration, "experimentLifetime": wanted.lifetime}
    limits = [f"{name} {format_duration(value)}" for name, value in given.items() if value]
    return ", ".join(limits) or "96h, since the message sets none"


def store_options(order: Order) -> StoreOptions:
    """Return what an attempt's stores are told of the operator's options."""
    given = order.options
    return StoreOptions(
        s3_ca=given.s3_ca,
        s3_cert=given.s3_cert,
        s3_key=given.s3_key,
        google_credentials=given.google_credentials,
        google_metadata=given.google_metadata,
        google_endpoint=given.google_endpoint,
        file_roots=given.file_roots,
        patience=Patience(given.store_patience),
    )


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
