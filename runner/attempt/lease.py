"""The lease: a small object beside an experiment's artifacts that says who runs it, and how it fared before.

Brokers hand a message to somebody else when it was held for long, or when they lost sight of its holder for a moment,
and they do not count why it came back. So each attempt leaves word where every runner that can run the experiment can
read it: a runner that gets the message does not run it a second time, neither beside an attempt that is alive nor after
the results are stored, and only failures that were the experiment's own count towards ``--max-attempts``.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import posixpath
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import asdict, dataclass, replace
from functools import partial

from runner.attempt.watch import Watch
from runner.attempt.worker import Worker
from runner.errors import ExperimentError, RunnerError
from runner.loop import Loop
from runner.machine import procfs
from runner.message.request import Artifact, Request
from runner.storage.base import NotFound
from runner.storage.stores import Stores

log = logging.getLogger(__name__)

# In seconds: how often a living attempt says so, and when it counts as dead. Clocks of machines may differ a little.
_PACE = 15.0
_SILENCE = 60.0
# In bytes; ours have some hundred.
_LARGEST = 64 * 1024
# In characters.
_LONGEST_SENTENCE = 500
# No experiment fails as often.
_MOST = 1_000_000


@dataclass(frozen=True)
class Lease:
    """What the object says.

    ``state`` is ``running``, ``waiting`` (for another attempt, or to be sent again) or ``over``. ``failures`` counts
    those that were the experiment's own. ``heartbeat`` is in seconds since 1970; ``process`` tells whether the attempt
    is alive to those that see the same processes. ``sentence`` says how the last attempt ended.
    """

    identity: str
    state: str
    attempt: int
    failures: int
    host: str
    process: str
    heartbeat: float
    sentence: str = ""

    def alive(self, now: float) -> bool:
        """True while an attempt that is not this process's own has to be expected to run."""
        if self.state != "running":
            return False
        where, _, born = self.process.rpartition("/")
        if where == procfs.here():
            return born == procfs.birth(int(born.partition("-")[0]))
        return now - self.heartbeat < _SILENCE


def parse(data: bytes, identity: str) -> Lease | None:
    """Read a lease; None when it is none, or that of another submission."""
    try:
        members = json.loads(data)
        lease = Lease(**members)
        sound = all(isinstance(each, int) and 0 <= each < _MOST for each in (lease.failures, lease.attempt))
        sound = sound and lease.heartbeat >= 0
        int(lease.process.rpartition("/")[2].partition("-")[0])
    except (ValueError, TypeError, AttributeError, RecursionError):
        return None
    return lease if sound and lease.identity == identity else None


class Elsewhere(RunnerError):
    """Another attempt at the experiment is alive."""


class Repeated(RunnerError):
    """The experiment is over, and its results are stored: only its message has come again."""


class Leasehold:
    """This attempt's lease. Only ``claim`` waits for the store; that nothing can be written is no reason not to run.

    ``reading`` and ``writing`` are the stores, the latter for a thread of the leasehold's own. An experiment that has
    nothing to leave anywhere, or no time of submission to be known by, has no lease. ``lost`` is called with why, when
    this attempt could not say for long that it runs (its machine slept, the store was away), and another one does
    now. ``clock`` gives seconds since 1970.
    """

    def __init__(
        self,
        wanted: Request,
        loop: Loop,
        *,
        reading: Stores,
        writing: Stores,
        lost: Callable[[Elsewhere], object],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._artifact = _neighbour(wanted) if wanted.time_added is not None else None
        self._identity, self._loop = wanted.identity, loop
        self._reading, self._writing, self._lost, self._clock = reading, writing, lost, clock
        self._worker = Worker(loop)
        self._ours: Lease | None = None
        self._said = 0.0

    def claim(self, *, failures: int, redeliveries: int | None) -> int:
        """Return the number of this attempt, from 1, and say from now on that it runs.

        ``failures`` are known to this runner. ``redeliveries`` stand in for a lease, for what they count: whatever made
        the message come again. Raises Elsewhere, Repeated, Unavailable.
        """
        self._said = self._clock()
        found = self._read()
        if found and found.state == "over":
            raise Repeated(f"it was over already: {found.sentence}")
        if found and found.alive(self._clock()):
            raise Elsewhere(f"attempt {found.attempt} runs on {found.host}")
        attempt = 1 + max(failures, found.failures if found else redeliveries or 0)
        ours = f"{procfs.here()}/{procfs.birth(os.getpid())}"
        self._ours = Lease(self._identity, "running", attempt, attempt - 1, platform.node(), ours, 0.0)
        self._beat()
        return attempt

    def leave(self, watch: Watch, *, over: bool, failures: int, sentence: str) -> None:
        """Say that this attempt does not run any more. To be called when what it did is stored."""
        if self._artifact and self._ours:
            state, sentence = "over" if over else "waiting", sentence[:_LONGEST_SENTENCE]
            self._ours = replace(self._ours, state=state, failures=failures, sentence=sentence)
            self._worker.wait(partial(self._put, self._artifact, self._ours), watch)

    def _beat(self) -> None:
        if self._artifact and self._ours and self._ours.state == "running":
            if not self._worker.busy:
                self._worker.call(partial(self._put, self._artifact, self._ours), self._heed)
            self._loop.call_later(_PACE, self._beat)

    def _heed(self, result: Future[Elsewhere | None]) -> None:
        if other := result.result():
            self._lost(other)

    def _read(self) -> Lease | None:
        """Return what the last attempt said, None when it said nothing or may not be asked. Raises Unavailable."""
        if self._artifact is None:
            return None
        try:
            return self._found(self._reading, self._artifact)
        except ExperimentError as error:
            log.debug("the lease cannot be read: %s", error)
            return None

    def _found(self, stores: Stores, artifact: Artifact) -> Lease | None:
        with stores.reach(artifact.location, artifact.credentials).open(self._key(artifact)) as stored:
            return parse(stored.stream.read(_LARGEST), self._identity)

    def _put(self, artifact: Artifact, lease: Lease) -> Elsewhere | None:
        """Write the lease, unless it is another attempt's by now, which is returned. In the worker's thread."""
        try:
            now = self._clock()
            if now - self._said >= _SILENCE and (other := self._other(artifact, lease)):
                return other
            store = self._writing.reach(artifact.location, artifact.credentials)
            with store.create(self._key(artifact)) as out:
                out.write(json.dumps({**asdict(lease), "heartbeat": now}).encode())
            self._said = now
        except RunnerError as error:
            log.debug("the lease cannot be written: %s", error)
        return None

    def _other(self, artifact: Artifact, ours: Lease) -> Elsewhere | None:
        """Look whether somebody took us for dead. Raises RunnerError."""
        try:
            found = self._found(self._writing, artifact)
        except NotFound:
            return None
        if found is None or found.process == ours.process or not found.alive(self._clock()):
            return None
        return Elsewhere(f"attempt {found.attempt} runs on {found.host}, where this one counts as dead")

    def _key(self, artifact: Artifact) -> str:
        directory = posixpath.dirname(artifact.location.key)
        return posixpath.join(directory, f"_lease-{self._identity[:16]}.json")


def _neighbour(wanted: Request) -> Artifact | None:
    """Return the artifact that the lease lies beside: the log where there is one, something that is written anyway."""
    mutable = {label: artifact for label, artifact in wanted.artifacts.items() if artifact.mutable}
    for label in ("output", "_metadata", "retval", *sorted(mutable)):
        if label in mutable:
            return mutable[label]
    return None
