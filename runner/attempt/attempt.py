"""One attempt at an experiment: fetch → prepare → run → return. A process of its own; ``events.py`` is its contract."""

from __future__ import annotations

import time
from collections.abc import Collection
from concurrent.futures import Future
from contextlib import ExitStack
from functools import partial

from runner import events
from runner.artifacts.artifacts import LOG_LABEL, METADATA
from runner.attempt import ending, verdict
from runner.attempt.checkpoints import Checkpoints
from runner.attempt.console import STANDARD_OUTPUT, STDERR, Console
from runner.attempt.metadata_files import stamp
from runner.attempt.parts import Parts
from runner.attempt.program import Programs
from runner.attempt.teller import Teller
from runner.attempt.usage import Limits, Usage
from runner.attempt.watch import Orphaned, Watch
from runner.errors import ExperimentError, RunnerError
from runner.events import Finished
from runner.loop import Loop
from runner.machine import delegated
from runner.machine.process import Confines
from runner.machine.users import User, give
from runner.order import Order
from runner.place import Place
from runner.sandbox.base import Job, Sandbox, user_of
from runner.sandbox.kinds import sandbox_for
from runner.sandbox.references import LABEL as IMAGE

# How long at most to wait for word of the GPUs, in seconds.
_GPU_PATIENCE = 15.0


class Attempt:
    """One attempt at one request, in one directory."""

    def __init__(self, order: Order, place: Place, *, loop: Loop, watch: Watch, teller: Teller) -> None:
        parts = self._parts = Parts(order, place, loop=loop, watch=watch, teller=teller)
        self._order, self._place, self._request, self._metadata = order, place, parts.request, parts.metadata
        self._loop, self._watch, self._tell, self._enter = loop, watch, teller.tell, parts.enter
        self._usage: Usage | None = None
        self._checkpoints = Checkpoints(
            self._request.artifacts.values(),
            self._request.save_frequency,
            due=self._checkpoint,
            store=partial(parts.artifacts.upload, parts.back),
            stored=self._checkpointed,
        )

    def run(self) -> Finished:
        """Make the attempt, and return how it ended. Raises Orphaned, with nothing left running."""
        parts = self._parts
        self._watch.limit(self._request.longest, verdict.late(self._request, "timeout"))
        self._watch.expire(self._request.end_of_life, verdict.late(self._request, "lifetime"))
        with ExitStack() as stack:
            console: Console | None = None
            try:
                self._claim()
                # The metadata and the log come first, so that what goes wrong later can be told in them.
                self._fetch(METADATA, LOG_LABEL)
                console = stack.enter_context(self._console())
                stack.enter_context(parts.remarks.into(console))
                parts.book.begin()
                self._fetch(*(label for label in self._request.artifacts if label not in (METADATA, LOG_LABEL, IMAGE)))
                programs = self._programs(console)
                sandbox = self._prepare(programs, console)
                self._execute(programs, sandbox, console)
                finished = verdict.completed(parts.name)
            except Orphaned:
                raise
            except RunnerError as failure:
                finished = verdict.judge(parts.name, self._blame_gpus(parts.disk.blame(failure)), parts.phase)
            finished = ending.tell(parts, finished, console=console, usage=self._usage)
            self._quiet()
            return ending.settle(parts, finished)

    def close(self) -> None:
        """Take back what the cache has lent, once nothing of the experiment runs any more."""
        if self._parts.cache:
            self._parts.cache.close()

    # Before it runs

    def _claim(self) -> None:
        """Make sure that nobody else runs the experiment, and that it is not over; learn which attempt this is."""
        parts = self._parts
        parts.number_is(parts.lease.claim(failures=self._order.failures, redeliveries=self._order.redeliveries))
        self._tell(events.Leased(parts.number, self._metadata.accession))

    def _fetch(self, *labels: str) -> None:
        self._enter("fetch")
        for label in labels:
            if label in self._request.artifacts:
                self._parts.artifacts.fetch(self._request.artifacts[label], self._parts.stores, self._watch.check)

    def _console(self) -> Console:
        given = self._order.options
        return Console(
            # Clients' code looks at all that lies beside its workspace: "output" is there only if the message has one.
            self._place.log(labelled=LOG_LABEL in self._request.artifacts),
            self._hear,
            most=given.max_output,
            secrets=self._parts.secrets,
            echo=STANDARD_OUTPUT if given.echo else None,
        )

    def _hear(self, line: str, stream: str) -> None:
        document = self._metadata.hear(line)
        if self._order.reported:
            self._parts.teller.line(line, error=stream == STDERR, document=document)

    def _programs(self, console: Console) -> Programs:
        given = self._order.options
        confines = Confines(nice=given.nice, processes=given.max_processes, user=user_of(self._order))
        return Programs(self._loop, self._watch, console, apart=self._order.reported, confines=confines)

    def _prepare(self, programs: Programs, console: Console) -> Sandbox:
        if self._request.filename != "-m" and not (self._place.workspace / self._request.filename).is_file():
            raise ExperimentError(f"the workspace has no file {self._request.filename!r}", verdict="artifact")
        self._enter("prepare")
        if user := user_of(self._order):
            self._give(user)
        job = Job(self._request, self._order, self._place, programs.run, console.say, self._watch.pause)
        sandbox = sandbox_for(job, self._parts.stores)
        with self._parts.progress.waiting("preparing the environment"):
            sandbox.prepare()
        self._metadata.add(pipdeptree=sandbox.packages())
        return sandbox

    def _give(self, user: User) -> None:
        """Make the user's own what an experiment may change: artifacts, but for the metadata, and temporary files."""
        labels = {"workspace", *self._request.artifacts} - {METADATA}
        for directory in (*map(self._place.label, labels), self._place.scratch / "tmp"):
            if directory.exists():
                give(directory, user)
        self._place.open_to(user.gid)

    # While it runs

    def _execute(self, programs: Programs, sandbox: Sandbox, console: Console) -> None:
        self._enter("run")
        argv, env = sandbox.command()
        self._metadata.add(start_time=stamp())
        given, asked = self._order.options, self._request.resources
        limits = Limits(asked.ram * given.enforce_ram, given.max_processes, given.hang_timeout)
        with delegated.group(memory=limits.memory, processes=limits.processes if given.run_as else 0) as group:
            usage = self._usage = Usage(
                asked, limits, group, loop=self._loop, watch=self._watch, fed=lambda: console.fed
            )
            begin = partial(self._begin, usage)
            try:
                status = programs.run(
                    argv, env, self._place.workspace, started=begin, largest_file=given.max_file_size, group=group
                )
            finally:
                usage.end()
        if usage.outgrown:
            raise usage.outgrown
        if status := sandbox.status(status):
            raise usage.blame(status) or verdict.of_script(self._request, status, console.exception)

    def _begin(self, usage: Usage, pid: int) -> None:
        """The experiment's process runs: from here on there is something to checkpoint, and somebody to tell."""
        parts = self._parts
        self._tell(events.Started(pid))
        usage.begin()
        parts.disk.watch()
        parts.book.note("running", time_started=time.time())
        self._checkpoints.begin(self._loop, parts.worker)

    def _checkpoint(self, labels: Collection[str]) -> None:
        if METADATA in labels:
            self._metadata.write("running")

    def _checkpointed(self, result: Future[int]) -> None:
        self._parts.tell_moved()
        error = result.exception()
        if error is None:
            self._tell(events.Checkpoint(result.result()))
            self._parts.remarks.detail(f"checkpoint, {result.result()} artifacts stored")
            self._parts.book.note("running", time_last_checkpoint=time.time())
        elif isinstance(error, RunnerError):
            self._tell(events.Checkpoint(0, str(error)))
        else:
            raise error

    # When it is over

    def _blame_gpus(self, error: RunnerError) -> RunnerError:
        """Ask the supervisor, who looks after the GPUs, whether it is one of theirs that the experiment failed by."""
        if self._parts.phase != "run" or not self._order.gpus or not isinstance(error, ExperimentError):
            return error
        self._tell(events.Failing())
        try:
            self._watch.await_gpus(_GPU_PATIENCE)
        except Orphaned:
            raise
        except RunnerError as broke:
            return broke
        return error

    def _quiet(self) -> None:
        """Nothing is stored on the side, measured or waited for any more: what follows is the end."""
        self._watch.returning()
        self._checkpoints.end()
        self._parts.book.end()
        self._parts.disk.end()
