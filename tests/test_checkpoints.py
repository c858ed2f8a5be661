"""When checkpoints are made."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Collection
from concurrent.futures import Future
from contextlib import closing

import pytest

from runner.attempt.checkpoints import Checkpoints
from runner.attempt.worker import Worker
from runner.loop import Loop
from runner.message.request import Artifact
from runner.storage.base import Location
from tests.loops import Clock, served

# In seconds; floats have it exactly.
STEP = 0.125


def artifact(label: str, pace: float | None = None, *, mutable: bool = True) -> Artifact:
    location = Location("file", "", "/store", f"{label}.tar")
    return Artifact(label, location, mutable, True, "", None, str(location), save_frequency=pace)


class Scene:
    """Checkpoints in a loop, and what they did."""

    def __init__(self, *artifacts: Artifact, pace: float | None, store: Callable[[Collection[str]], int]) -> None:
        self._clock = Clock()
        self.loop = Loop(self._clock)
        self.worker = Worker(self.loop)
        self.results: list[Future[int]] = []
        self.due: list[str] = []
        self.checkpoints = Checkpoints(artifacts, pace, due=self.due.extend, store=store, stored=self.results.append)
        self.checkpoints.begin(self.loop, self.worker)

    def until(self, what: Callable[[], bool]) -> None:
        assert served(self.loop, what), "it did not happen"

    def spend(self, seconds: float, *, hurried: bool = False) -> None:
        """Let time pass, and all be stored that is due; or not, where the store holds on to it."""
        for _ in range(round(seconds / STEP)):
            self._clock.now += STEP
            self.loop.run_once(0)
            if not hurried:
                self.until(lambda: not self.worker.busy)


def test_each_artifact_is_stored_at_its_own_pace_or_else_at_that_of_all() -> None:
    stored: list[str] = []
    everything = [
        artifact("modeldir"),
        artifact("tb", 0.25),
        artifact("slow", 3600.0),
        artifact("never", 0.0),
        artifact("workspace", 0.25, mutable=False),
        artifact("retval", 0.25),
    ]
    scene = Scene(*everything, pace=1.0, store=lambda labels: stored.extend(labels) or 0)
    with closing(scene.loop):
        scene.spend(3.0)
        assert Counter(stored) == Counter(scene.due) == {"modeldir": 3, "tb": 12}


@pytest.mark.parametrize("pace", [None, 0.0])
def test_without_a_pace_there_are_none(pace: float | None) -> None:
    scene = Scene(artifact("modeldir"), pace=pace, store=lambda _labels: 0)
    with closing(scene.loop):
        scene.spend(60.0)
        assert not scene.due


def test_a_store_too_slow_for_the_pace_misses_beats_and_ends_with_the_experiment() -> None:
    go_on, stored = threading.Event(), []

    def store(labels: Collection[str]) -> int:
        stored.extend(labels)
        go_on.wait(60)
        return 1

    scene = Scene(artifact("modeldir"), artifact("tb", 0.5), pace=0.25, store=store)
    with closing(scene.loop):
        scene.spend(5.0, hurried=True)
        assert scene.due == ["modeldir", "tb"]
        scene.until(lambda: bool(stored))
        assert stored == ["modeldir"]
        scene.checkpoints.end()
        go_on.set()
        scene.until(lambda: len(scene.results) == 2)
        assert stored == ["modeldir"], "what waited for its turn is not begun after the end"
        scene.spend(5.0)
        assert len(scene.due) == 2
