"""Which queue may be asked for work now: that which has used the machine least, if its messages fit."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from runner.errors import MachineError
from runner.machine.allocate import Allocator, Need
from runner.queues.base import QueueServer
from runner.supervisor.reasons import Reasons

# All in seconds. Pauses: the first one, doubled with each further reason, up to the longest.
_FIRST = 1.0
_LONGEST = 60.0
# How soon a queue that is to send a message again is asked once more when it gave another one, that does not fit.
_ADOPTING = 5.0
# How long at most a queue waits for the resources that its first message needs, which may have changed by then.
_HELD = 30.0
# What a queue used so long ago counts half.
_HALF_LIFE = 600.0
# An experiment that has just started counts as if it had run for so long, or else the first queue would take all.
_START = 1.0
# How long a server may take to hand over what a queue has, so that it is this queue's turn.
_ANSWER = 0.05
# A first message that does not fit for so long gets the machine kept free for it, for the first part of each period.
_STARVED = 60.0
_KEPT_FREE = 300.0
_PERIOD = 900.0


@dataclass
class _State:
    """What is known of one queue. Times are the clock's, ``used`` is in core-seconds, ``cores`` are those in use."""

    pauses: int = 0
    not_before: float = 0.0
    held_for: Need | None = None
    held_until: float = 0.0
    starved_since: float | None = None
    used: float = 0.0
    cores: int = 0
    asked_since: float | None = None

    @property
    def share(self) -> float:
        """What counts against it when queues compete."""
        return self.used + self.cores * _START

    def answers(self, now: float) -> bool:
        """Tell whether it was asked just now, and may have a message."""
        return self.asked_since is not None and now - self.asked_since < _ANSWER

    def claims(self, now: float) -> bool:
        """Tell whether others may have to leave room for it."""
        return self.held_for is not None or self.answers(now)


@dataclass
class Queues:
    """All servers' queues; ``clock`` gives monotonic seconds."""

    servers: Sequence[QueueServer]
    allocator: Allocator
    clock: Callable[[], float]
    reasons: Reasons
    _states: dict[str, _State] = field(default_factory=dict)
    _counted: float = 0.0
    _claimants: dict[str, _State] = field(default_factory=dict)

    def rota(self) -> Iterator[tuple[QueueServer, str]]:
        """Yield every queue once, that which has used the machine least first."""
        known = [(server, queue) for server in self.servers for queue in server.queues()]
        names = {queue for _, queue in known}
        self._states = {name: state for name, state in self._states.items() if name in names or state.cores}
        self._claimants = {name: state for name, state in self._states.items() if state.claims(self.clock())}
        self.reasons.known(names)
        self._count()
        yield from sorted(known, key=lambda each: (self._state(each[1]).share, random.random()))  # noqa: S311 -- a draw

    def may_ask(self, queue: str, *, adopting: bool = False) -> bool:
        """Say whether a queue may be asked for a message now.

        Not while it is paused, or held until what its first message needs is free, or while others come first.
        ``adopting``: a message that belongs to a running experiment is expected from it.
        """
        state, now = self._state(queue), self.clock()
        if now < state.not_before:
            return False
        if state.held_for and (now >= state.held_until or self.fits(queue, state.held_for)):
            state.held_for = None
        if state.held_for:
            return adopting and now >= state.held_until - _HELD + _ADOPTING
        if adopting:
            return True
        return self._in_turn(queue, state)

    def fits(self, queue: str, need: Need) -> bool:
        """Say whether so much is free for a queue: GPUs may be kept for one that waits long for more of them."""
        return self.allocator.fits(need) and not (need.gpus and self._gpus_kept(queue))

    def waiting(self, queue: str) -> tuple[float, bool]:
        """Return for how many seconds a queue is left alone, and whether its first message waits for resources."""
        state = self._state(queue)
        return max(0.0, state.not_before - self.clock()), bool(state.held_for)

    def asked(self, queue: str, *, took: bool) -> None:
        """A queue was asked: it gave a message or listens."""
        state = self._state(queue)
        if took:
            state.asked_since = None
        elif state.asked_since is None:
            state.asked_since = self.clock()
            self._claimants[queue] = state
        elif self.clock() - state.asked_since > _ANSWER:
            state.starved_since = None  # it is empty
            self.reasons.clear(queue)

    def rested(self, queue: str) -> None:
        """A queue is not listened to."""
        self._state(queue).asked_since = None

    def hold(self, queue: str, need: Need) -> None:
        """The queue's first message needs more than is free just now."""
        state = self._state(queue)
        state.held_for, state.held_until = need, self.clock() + _HELD
        self._claimants[queue] = state
        if state.starved_since is None:
            state.starved_since = self.clock()
        if lacking := self.allocator.lacking(need):
            self.reasons.tell(queue, f"its first message waits for resources: it needs {lacking}")
        else:
            self.reasons.tell(queue, "the free GPUs are kept for another queue, which has waited longer")

    def pause(self, queue: str, why: MachineError | str, *, logged: bool = False) -> None:
        """The queue's first message cannot run here: leave it to others for a while; ``logged``: that was said."""
        state = self._state(queue)
        pause = min(_LONGEST, _FIRST * 2**state.pauses) * random.uniform(0.8, 1.2)  # noqa: S311 -- jitter
        state.pauses = min(state.pauses + 1, 10)
        state.not_before = self.clock() + pause
        until = datetime.now().astimezone() + timedelta(seconds=pause)
        self.reasons.tell(queue, f"{why}", f"it is left to others until {until:%H:%M:%S}", logged=logged)

    def started(self, queue: str, need: Need) -> None:
        """An attempt at one of the queue's messages starts."""
        self._count()
        state = self._state(queue)
        state.cores += need.cpus
        state.starved_since = None
        self.reasons.clear(queue)

    def ended(self, queue: str, need: Need, *, well: bool) -> None:
        """An attempt is over; ``well``: it was this machine's business, and done."""
        self._count()
        state = self._state(queue)
        state.cores -= need.cpus
        if well:
            state.pauses = 0

    def rest_all(self) -> None:
        """Stop listening to every queue."""
        for server in self.servers:
            for queue in server.queues():
                server.rest(queue)
                self.rested(queue)

    def _gpus_kept(self, queue: str) -> bool:
        now, share = self.clock(), self._state(queue).share
        others = [other for name, other in self._states.items() if name != queue and other.share < share]
        return any(other.held_for and other.held_for.gpus and _kept_free(now, other.starved_since) for other in others)

    def _in_turn(self, queue: str, state: _State) -> bool:
        """Leave room for the queues that have used less, and are about to answer or starve."""
        free, now = self.allocator.free.cpus, self.clock()
        # Those only: to look at all queues for each of them takes minutes when there are thousands.
        self._claimants = {name: other for name, other in self._claimants.items() if other.claims(now)}
        for name, other in self._claimants.items():
            if name == queue or other.share >= state.share:
                continue
            if other.answers(now):
                free -= 1
            if (
                other.held_for
                and not self.allocator.lacks_only_gpus(other.held_for)
                and _kept_free(now, other.starved_since)
            ):
                self.reasons.tell(queue, f"queue {name} comes first, whose experiment needs {other.held_for}")
                return False
        return free > 0

    def _count(self) -> None:
        """Bring what every queue has used up to now."""
        now = self.clock()
        passed, self._counted = now - self._counted, now
        for state in self._states.values():
            state.used = state.used * 0.5 ** (passed / _HALF_LIFE) + state.cores * passed

    def _state(self, queue: str) -> _State:
        return self._states.setdefault(queue, _State())


def _kept_free(now: float, starved_since: float | None) -> bool:
    if starved_since is None:
        return False
    starved = now - starved_since
    return starved >= _STARVED and (starved - _STARVED) % _PERIOD < _KEPT_FREE
