"""All the stores that one user of them talks to, each connected once."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from runner import retry
from runner.storage import connect
from runner.storage.base import Credentials, Location, Store, StoreOptions

T = TypeVar("T")


class Stores:
    """Stores under one set of options, for one thread. ``sleep`` is how they wait between tries."""

    def __init__(self, options: StoreOptions, *, sleep: Callable[[float], None]) -> None:
        self._options, self._sleep = options, sleep
        self._known: dict[tuple[Location, Credentials | None], Store] = {}

    def reach(self, location: Location, credentials: Credentials | None) -> Store:
        """Return the store that an object is in. Raises as ``storage.connect`` does."""
        bucket = location.sibling("")
        if (bucket, credentials) not in self._known:
            self._known[bucket, credentials] = connect(bucket, credentials, self._options, sleep=self._sleep)
        return self._known[bucket, credentials]

    def again(self, action: Callable[[], T]) -> T:
        """Do a whole transfer, again while it breaks in the middle and patience lasts. Raises what the last one did."""
        return retry.call(action, self._options.patience, sleep=self._sleep)
