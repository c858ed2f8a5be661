"""All the stores that one user of them talks to, each connected once."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from runner import retry
from runner.storage import connect
from runner.storage.base import Anew, Credentials, Location, Store, StoreOptions
from runner.storage.metered import Meter, Metered

T = TypeVar("T")


class Stores:
    """Stores under one set of options, for one thread. ``sleep`` is how they wait between tries.

    ``meter`` counts what comes and goes.
    """

    def __init__(self, options: StoreOptions, *, sleep: Callable[[float], None], meter: Meter | None = None) -> None:
        self._options, self._sleep = options, sleep
        self._meter = meter or Meter()
        self._known: dict[tuple[Location, Credentials | None], Store] = {}

    def reach(self, location: Location, credentials: Credentials | None) -> Store:
        """Return the store that an object is in. Raises as ``storage.connect`` does."""
        bucket = location.sibling("")
        if (bucket, credentials) not in self._known:
            store = connect(bucket, credentials, self._options, sleep=self._sleep)
            self._known[bucket, credentials] = Metered(store, location.scheme, self._meter)
        return self._known[bucket, credentials]

    def again(self, action: Callable[[], T]) -> T:
        """Do a whole transfer, again while it breaks in the middle and patience lasts. Raises what the last one did.

        Patience is for stores that do not answer: a transfer that took longer, and has to begin Anew, does so once.
        """
        tries = 0

        def counted() -> T:
            nonlocal tries
            tries += 1
            return action()

        try:
            return retry.call(counted, self._options.patience, sleep=self._sleep)
        except Anew:
            if tries > 1 or not self._options.patience.total:
                raise
        return action()
