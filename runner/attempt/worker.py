"""One thread for what blocks on stores while an experiment runs."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from runner.attempt.watch import Watch
from runner.loop import Loop

T = TypeVar("T")


class Worker:
    """Does one thing after the other in a thread; the results come back into the loop.

    The thread starts with the first call: until then it is safe to fork.
    """

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._pool = ThreadPoolExecutor(1, "stores")
        self._waiting = 0

    @property
    def busy(self) -> bool:
        """True while something is being done or waits to be."""
        return self._waiting > 0

    def call(self, action: Callable[[], T], then: Callable[[Future[T]], None]) -> None:
        """Do something after what was asked for before it; ``then`` is called in the loop."""

        def over(result: Future[T]) -> None:
            self._waiting -= 1
            then(result)

        self._waiting += 1
        future = self._pool.submit(action)
        future.add_done_callback(lambda result: self._loop.add_callback(lambda: over(result)))

    def wait(self, action: Callable[[], T], watch: Watch) -> T:
        """Do something after all that was asked for before it, serving the loop; raises what either raises."""
        results: list[Future[T]] = []
        self.call(action, results.append)
        while not results:
            watch.serve()
        return results[0].result()
