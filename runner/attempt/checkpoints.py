"""Checkpoints: mutable artifacts stored while the experiment goes on, each at the pace that its message asks for."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import Future
from functools import partial

from runner.artifacts.artifacts import FINAL_ONLY
from runner.attempt.worker import Worker
from runner.loop import Loop
from runner.message.request import Artifact

# Checkpoints nearer to each other than that, in seconds, would leave time for nothing else.
_SHORTEST_PACE = 0.1

Store = Callable[[Collection[str]], int]
"""Stores what has changed of the artifacts with these labels, and returns how many had: in the worker's thread."""


class Checkpoints:
    """The checkpoints of one attempt. What is too slow for its pace misses a beat; the others do not.

    ``pace`` is that of artifacts which have none of their own, in seconds; 0 or None is never. ``stored`` is called in
    the loop with how each checkpoint went, ``due`` before each is put on its way.
    """

    def __init__(
        self,
        artifacts: Iterable[Artifact],
        pace: float | None,
        *,
        due: Callable[[Collection[str]], None],
        store: Store,
        stored: Callable[[Future[int]], None],
    ) -> None:
        self._due, self._store, self._stored = due, store, stored
        self._labels: dict[float, list[str]] = defaultdict(list)
        for artifact in artifacts:
            own = pace if artifact.save_frequency is None else artifact.save_frequency
            if artifact.mutable and artifact.label != FINAL_ONLY and own:
                self._labels[max(_SHORTEST_PACE, own)].append(artifact.label)
        self._waiting: set[float] = set()
        self._over = False

    def begin(self, loop: Loop, worker: Worker) -> None:
        """The experiment runs: from now on there is something to store."""
        for pace in self._labels:
            loop.call_later(pace, partial(self._beat, pace, loop, worker))

    def end(self) -> None:
        """No checkpoint begins any more, also none that waits for its turn."""
        self._over = True

    def _beat(self, pace: float, loop: Loop, worker: Worker) -> None:
        if self._over:
            return
        if pace not in self._waiting:
            self._waiting.add(pace)
            self._due(self._labels[pace])
            worker.call(partial(self._store_in_time, pace), partial(self._heard, pace))
        loop.call_later(pace, partial(self._beat, pace, loop, worker))

    def _store_in_time(self, pace: float) -> int:
        """In the worker's thread."""
        return 0 if self._over else self._store(self._labels[pace])

    def _heard(self, pace: float, result: Future[int]) -> None:
        self._waiting.discard(pace)
        self._stored(result)
