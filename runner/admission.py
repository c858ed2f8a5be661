"""Which queue may be asked for work now: in turn, with growing pauses for those whose messages do not fit."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from runner.machine.allocate import Allocator, Resources
from runner.queues.base import QueueServer
from runner.settle import Decision

# Pauses in seconds: the first one, doubled with each further reason, up to the longest.
_FIRST = 1.0
_LONGEST = 60.0
# How long at most a queue waits for the resources that its first message needs, which may have changed by then.
_HELD = 30.0


@dataclass
class _State:
    pauses: int = 0
    not_before: float = 0.0
    held_for: Resources | None = None
    held_until: float = 0.0


class Queues:
    """All servers' queues; ``clock`` gives monotonic seconds."""

    def __init__(self, servers: Sequence[QueueServer], clock: Callable[[], float]) -> None:
        self._servers, self._clock = servers, clock
        self._states: dict[str, _State] = {}
        self._turn = 0

    def rota(self) -> Iterator[tuple[QueueServer, str]]:
        """Yield every queue once, beginning with another one each time."""
        known = [(server, queue) for server in self._servers for queue in sorted(server.queues())]
        names = {queue for _, queue in known}
        self._states = {queue: state for queue, state in self._states.items() if queue in names}
        self._turn += 1
        first = self._turn % len(known) if known else 0
        yield from known[first:] + known[:first]

    def may_ask(self, queue: str, allocator: Allocator) -> bool:
        """False while the queue is paused, or is held until what its first message needs is free."""
        state, now = self._state(queue), self._clock()
        if now < state.not_before:
            return False
        if state.held_for and (now >= state.held_until or allocator.fits(state.held_for)):
            state.held_for = None
        return state.held_for is None

    def hold(self, queue: str, need: Resources) -> None:
        """The queue's first message needs more than is free just now."""
        state = self._state(queue)
        state.held_for, state.held_until = need, self._clock() + _HELD

    def misfit(self, queue: str) -> None:
        """The queue's first message cannot run here: leave it to others for a while."""
        state = self._state(queue)
        pause = min(_LONGEST, _FIRST * 2**state.pauses)
        state.pauses = min(state.pauses + 1, 10)
        state.not_before = self._clock() + pause * random.uniform(0.8, 1.2)  # noqa: S311 -- jitter

    def after(self, queue: str, verdict: str, decision: Decision) -> None:
        """An attempt at one of the queue's messages is over."""
        if verdict in ("misfit", "unavailable"):
            self.misfit(queue)
        elif decision is Decision.ACK:
            self._state(queue).pauses = 0

    def rest_all(self) -> None:
        """Stop listening to every queue."""
        for server in self._servers:
            for queue in server.queues():
                server.rest(queue)

    def _state(self, queue: str) -> _State:
        return self._states.setdefault(queue, _State())
