"""One attempt at an experiment: fetch → prepare → run → return. A process of its own; ``events.py`` is its contract."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Collection
from concurrent.futures import Future
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

from runner import events
from runner.artifacts.artifacts import LOG_LABEL, METADATA, Artifacts
from runner.artifacts.budget import Budget
from runner.artifacts.cache import Cache
from runner.artifacts.cache_entries import Entries
from runner.artifacts.progress import Progress
from runner.attempt import verdict
from runner.attempt.checkpoints import Checkpoints
from runner.attempt.console import STANDARD_ERROR, STANDARD_OUTPUT, STDERR, Console
from runner.attempt.disk_use import DiskUse
from runner.attempt.lease import Leasehold
from runner.attempt.metadata_files import MetadataFiles, stamp
from runner.attempt.program import Programs
from runner.attempt.record import Bookkeeping
from runner.attempt.remarks import Remarks
from runner.attempt.teller import Teller
from runner.attempt.usage import Limits, Usage
from runner.attempt.watch import Orphaned, Watch
from runner.attempt.worker import Worker
from runner.errors import ExperimentError, MachineError, RunnerError, Unavailable
from runner.events import Finished, Order
from runner.log import always_about, mask
from runner.loop import Loop
from runner.machine.process import Confines
from runner.machine.users import User, give
from runner.message import request
from runner.place import Place
from runner.retry import Patience
from runner.sandbox.base import Job, Sandbox, user_of
from runner.sandbox.references import LABEL as IMAGE
from runner.sandbox.singularity import Singularity
from runner.sandbox.venv import VirtualEnvironment
from runner.storage.metered import Meter
from runner.storage.stores import Stores
from runner.units import format_duration

log = logging.getLogger(__name__)

# How long at most to wait for word of the GPUs, in seconds.
_GPU_PATIENCE = 15.0


class Attempt:
    """One attempt at one request, in one directory."""

    def __init__(self, order: Order, place: Place, *, loop: Loop, watch: Watch, teller: Teller) -> None:
        self._order, self._place, self._loop, self._watch = order, place, loop, watch
        self._teller, self._tell = teller, teller.tell
        self._secrets, barred = order.secrets()
        teller.secrets = self._secrets
        mask(self, self._secrets)
        self._request = request.from_document(order.document, allow_env_secrets=order.options.allow_env_secrets)
        self._began = time.time()
        self._attempt = 1 + order.failures
        self._name_events()
        self._phase = ""
        self._usage: Usage | None = None
        # Before the experiment runs, stores are used from here, afterwards from the worker: one connection each.
        options = order.options.of_stores
        self._meter = Meter()
        self._stores = Stores(options, sleep=watch.pause, meter=self._meter)
        self._back = Stores(options, sleep=time.sleep, meter=self._meter)
        beating = Stores(replace(options, patience=Patience(0)), sleep=time.sleep)
        self._lease = Leasehold(self._request, loop, reading=self._stores, writing=beating, lost=watch.end)
        self._worker = Worker(loop)
        self._book = Bookkeeping(self._request.record, Stores(options, sleep=time.sleep), loop, stopped=watch.cancel)
        budget = Budget(self._request.resources.hdd or None)
        self._disk = DiskUse(
            place, self._request.resources.hdd, loop=loop, watch=watch, tell=lambda used: self._tell(events.Used(used))
        )
        self._cache = self._open_cache()
        looking = order.options.echo and os.isatty(STANDARD_ERROR)
        self._remarks = Remarks(loop, self._tell, self._request.verbose, looking=looking)
        self._progress = Progress(loop, self._remarks.advanced, bar=STANDARD_ERROR if looking else None)
        artifacts = list(self._request.artifacts.values())
        self._artifacts = Artifacts(artifacts, place, budget, self._cache, self._progress, barred=barred)
        self._metadata = MetadataFiles(order, self._request, place, began=self._began, secrets=self._secrets)
        self._checkpoints = Checkpoints(
            self._request.artifacts.values(),
            self._request.save_frequency,
            due=self._checkpoint,
            store=partial(self._artifacts.upload, self._back),
            stored=self._checkpointed,
        )

    def run(self) -> Finished:
        """Make the attempt, and return how it ended. Raises Orphaned, with nothing left running."""
        self._watch.limit(self._request.longest, _late(self._request, "timeout"))
        self._watch.expire(self._request.end_of_life, _late(self._request, "lifetime"))
        with ExitStack() as stack:
            console: Console | None = None
            try:
                self._claim()
                self._fetch(METADATA, LOG_LABEL)
                console = stack.enter_context(
                    Console(
                        self._log_path(),
                        self._hear,
                        most=self._order.options.max_output,
                        secrets=self._secrets,
                        echo=STANDARD_OUTPUT if self._order.options.echo else None,
                    )
                )
                stack.enter_context(self._remarks.into(console))
                self._fetch(*(label for label in self._request.artifacts if label not in (METADATA, LOG_LABEL, IMAGE)))
                programs = Programs(
                    self._loop, self._watch, console, apart=self._order.reported, confines=self._confines()
                )
                sandbox = self._prepare(programs, console)
                self._execute(programs, sandbox, console)
                finished = verdict.completed(self._name)
            except Orphaned:
                raise
            except RunnerError as failure:
                finished = verdict.judge(self._name, self._blame_gpus(self._disk.blame(failure)), self._phase)
            finished = self._without_secrets(finished)
            self._tell_all(finished, console)
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
        # In debug mode, directories are left behind for people to look at; those of another user are not as they were.
        return Cache(entries, self._place.scratch, tell, lending=not (given.debug or given.run_as))

    @property
    def _name(self) -> str:
        return f"experiment {self._request.key!r}, attempt {self._attempt},"

    @property
    def _last(self) -> bool:
        return self._attempt >= self._order.allowed

    def _claim(self) -> None:
        """Make sure that nobody else runs the experiment, and that it is not over; learn which attempt this is."""
        self._attempt = self._lease.claim(failures=self._order.failures, redeliveries=self._order.redeliveries)
        self._name_events()
        self._tell(events.Leased(self._attempt, self._metadata.accession))

    def _name_events(self) -> None:
        always_about(
            experiment=self._request.key,
            queue=self._order.queue,
            attempt=self._attempt,
            verbose=self._request.verbose,
        )

    def _fetch(self, *labels: str) -> None:
        """Fetch artifacts; the log and the metadata come first, so that what goes wrong then can be told in them."""
        self._enter("fetch")
        for label in labels:
            if label in self._request.artifacts:
                self._artifacts.fetch(self._request.artifacts[label], self._stores, self._watch.check)

    def _enter(self, phase: str) -> None:
        self._phase = phase
        self._remarks.detail(f"phase {phase}")
        self._tell_moved()
        self._tell(events.Phase(phase))

    def _tell_moved(self) -> None:
        for scheme, (fetched, stored) in self._meter.taken().items():
            self._tell(events.Moved(scheme, fetched, stored))

    def _hear(self, line: str, stream: str) -> None:
        document = self._metadata.hear(line)
        if self._order.reported:
            self._teller.line(line, error=stream == STDERR, document=document)

    def _log_path(self) -> Path:
        # Clients' code looks at all that lies beside its workspace: there is an "output" only if the message has one.
        return self._place.log(labelled=LOG_LABEL in self._request.artifacts)

    def _prepare(self, programs: Programs, console: Console) -> Sandbox:
        if self._request.filename != "-m" and not (self._place.workspace / self._request.filename).is_file():
            raise ExperimentError(f"the workspace has no file {self._request.filename!r}", verdict="artifact")
        self._enter("prepare")
        if user := user_of(self._order):
            self._give(user)
        job = Job(self._request, self._order, self._place, programs.run, console.say, self._watch.pause)
        sandbox = sandbox_for(job, self._stores)
        with self._progress.waiting("preparing the environment"):
            sandbox.prepare()
        self._metadata.add(pipdeptree=sandbox.packages())
        return sandbox

    def _give(self, user: User) -> None:
        """Make the user's own what an experiment may change: artifacts, but for the metadata, and temporary files."""
        labels = {"workspace", *self._request.artifacts} - {METADATA}
        for directory in (*map(self._place.label, labels), self._place.scratch / "tmp"):
            if directory.exists():
                give(directory, user)

    def _execute(self, programs: Programs, sandbox: Sandbox, console: Console) -> None:
        self._enter("run")
        argv, env = sandbox.command()
        self._metadata.add(start_time=stamp())
        usage = self._usage = self._measured(console)
        try:
            begin, largest = partial(self._begin, usage), self._order.options.max_file_size
            status = programs.run(argv, env, self._place.workspace, started=begin, largest_file=largest)
            status = sandbox.status(status)
        finally:
            usage.end()
        if status:
            raise usage.blame(status) or verdict.of_script(self._request, status, console.exception)

    def _measured(self, console: Console) -> Usage:
        given, asked = self._order.options, self._request.resources
        limits = Limits(asked.ram * given.enforce_ram, given.max_processes, given.hang_timeout)
        return Usage(asked, limits, loop=self._loop, watch=self._watch, fed=lambda: console.fed)

    def _confines(self) -> Confines:
        given = self._order.options
        return Confines(nice=given.nice, processes=given.max_processes, user=user_of(self._order))

    def _blame_gpus(self, error: RunnerError) -> RunnerError:
        """Ask the supervisor, who looks after the GPUs, whether it is one of theirs that the experiment failed by."""
        if self._phase != "run" or not self._order.gpus or not isinstance(error, ExperimentError):
            return error
        self._tell(events.Failing())
        try:
            self._watch.await_gpus(_GPU_PATIENCE)
        except Orphaned:
            raise
        except RunnerError as broke:
            return broke
        return error

    def _begin(self, usage: Usage, pid: int) -> None:
        """The experiment's process runs: from here on there is something to checkpoint, and somebody to tell."""
        self._tell(events.Started(pid))
        usage.begin()
        self._disk.watch()
        self._book.begin(time_started=time.time())
        self._checkpoints.begin(self._loop, self._worker)

    def _checkpoint(self, labels: Collection[str]) -> None:
        if METADATA in labels:
            self._metadata.write("running")

    def _checkpointed(self, result: Future[int]) -> None:
        self._tell_moved()
        error = result.exception()
        if error is None:
            self._tell(events.Checkpoint(result.result()))
            self._remarks.detail(f"checkpoint, {result.result()} artifacts stored")
            self._book.note("running", time_last_checkpoint=time.time())
        elif isinstance(error, RunnerError):
            self._tell(events.Checkpoint(0, str(error)))
        else:
            raise error

    # At the end

    def _tell_all(self, finished: Finished, console: Console | None) -> None:
        """Put the verdict where people and programs look for it: metadata, log, and with its lines reports."""
        if self._usage:
            self._metadata.add(resources=self._usage.described(self._disk.most, self._watch.gpu_memory))
        if console:
            with suppress(MachineError):  # a full disk, perhaps; the supervisor's log has it too
                console.say(finished.sentence)
                console.write(verdict.line(finished, self._attempt))
        self._metadata.add(verdict=verdict.described(finished, self._attempt))

    def _without_secrets(self, finished: Finished) -> Finished:
        return replace(finished, sentence=self._secrets.mask_text(finished.sentence))

    def _return(self, finished: Finished) -> Finished:
        """Store everything; results that cannot be stored mean that the attempt did not happen."""
        self._watch.returning()
        self._checkpoints.end()
        self._book.end()
        self._disk.end()
        if finished.outcome in ("completed", "failed", "cancelled", "stopped"):
            self._enter("return")
            status = "completed" if finished.outcome == "completed" else "failed"
            try:
                self._metadata.write(status, stop_time=stamp())
                self._worker.wait(partial(self._artifacts.upload, self._back), self._watch)
            except (ExperimentError, Unavailable, MachineError) as error:
                finished = self._without_secrets(verdict.not_stored(self._name, finished, error))
        finished = replace(finished, last=finished.outcome == "failed" and self._last)
        if finished.outcome not in ("elsewhere", "repeated"):
            self._settle_record(finished)
            self._leave(finished)
        self._tell_moved()
        return finished

    def _leave(self, finished: Finished) -> None:
        """Leave word for whoever gets the message next, if anybody does."""
        failures = self._attempt - (finished.outcome != "failed")
        over = finished.outcome in ("completed", "cancelled")
        # After the last failure its message is sent again only by somebody who wants it to be tried anew.
        self._lease.leave(self._watch, over=over, failures=0 if finished.last else failures, sentence=finished.sentence)

    def _settle_record(self, finished: Finished) -> None:
        """Tell the client how it ended, or that it will be tried again."""
        over = finished.outcome in ("completed", "cancelled") or finished.last
        status = "stopped" if finished.outcome == "cancelled" else "finished" if over else "waiting"
        outcome = {**verdict.described(finished, self._attempt), "accession": self._metadata.accession}
        times = {"time_finished": time.time()} if over else {}
        self._book.settle(self._watch, status, outcome=outcome, **times)


def _late(wanted: request.Request, word: str) -> ExperimentError:
    """Say in words where the time limit of an attempt comes from; ``word`` is that of the verdict."""
    given = {"max_duration": wanted.max_duration, "experimentLifetime": wanted.lifetime}
    limits = [f"{name} {format_duration(value)}" for name, value in given.items() if value]
    which = ", ".join(limits) or "96h, since the message sets none"
    return ExperimentError(f"it was stopped at its time limit ({which})", verdict=word)


def sandbox_for(job: Job, stores: Stores) -> VirtualEnvironment | Singularity:
    """Return the kind of sandbox that a message asks for."""
    return Singularity(job, stores) if IMAGE in job.request.artifacts else VirtualEnvironment(job)
