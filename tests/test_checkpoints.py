"""When checkpoints are made."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from concurrent.futures import Future
from contextlib import closing

import pytest

from runner.attempt.checkpoints import Checkpoints
from runner.attempt.worker import Worker
from runner.loop import Loop
from runner.message.request import Artifact
from runner.storage.base import Location
from tests.loops import served


def artifact(label: str, pace: float | None = None, *, mutable: bool = True) -> Artifact:
    location = Location("file", "", "/store", f"{label}.tar")
    return Artifact(label, location, mutable, True, "", None, str(location), save_frequency=pace)


class Scene:
    """Checkpoints in a loop, and what they did."""

    def __init__(self, *artifacts: Artifact, pace: float | None, store: Callable[[Collection[str]], int]) -> None:
        self.loop = Loop()
        self.results: list[Future[int]] = []
        self.due: list[str] = []
        self.checkpoints = Checkpoints(artifacts, pace, due=self.due.extend, store=store, stored=self.results.append)
        self.checkpoints.begin(self.loop, Worker(self.loop))

    def until(self, what: Callable[[], bool]) -> None:
        assert served(self.loop, what, seconds=10), "it did not happen"


def test_each_artifact_is_stored_at_its_own_pace_or_else_at_that_of_all() -> None:
    stored: list[str] = []
    everything = [
        artifact("modeldir"),
        artifact("tb", 0.1),
        artifact("slow", 3600.0),
        artifact("never", 0.0),
        artifact("workspace", 0.1, mutable=False),
        artifact("retval", 0.1),
    ]
    scene = Scene(*everything, pace=0.3, store=lambda labels: stored.extend(labels) or 0)
    with closing(scene.loop):
        scene.until(lambda: stored.count("modeldir") == 3)
        assert stored.count("tb") > 4
        assert set(stored) == {"modeldir", "tb"}
        assert set(scene.due) == {"modeldir", "tb"}


@pytest.mark.parametrize("pace", [None, 0.0])
def test_without_a_pace_there_are_none(pace: float | None) -> None:
    scene = Scene(artifact("modeldir"), pace=pace, store=lambda _labels: 0)
    with closing(scene.loop):
        scene.loop.run_once(0.2)
        assert not scene.due


def test_a_store_too_slow_for_the_pace_misses_beats_and_ends_with_the_experiment() -> None:
    go_on, stored = threading.Event(), []

    def store(labels: Collection[str]) -> int:
        stored.extend(labels)
        go_on.wait(10)
        return 1

    scene = Scene(artifact("modeldir"), artifact("tb", 0.15), pace=0.1, store=store)
    with closing(scene.loop):
        scene.until(lambda: len(scene.due) == 2)
        for _ in range(20):
            scene.loop.run_once(0.02)
        assert scene.due == ["modeldir", "tb"]
        assert stored == ["modeldir"]
        scene.checkpoints.end()
        go_on.set()
        scene.until(lambda: len(scene.results) == 2)
        assert stored == ["modeldir"], "what waited for its turn is not begun after the end"
        for _ in range(20):
            scene.loop.run_once(0.02)
        assert len(scene.due) == 2
