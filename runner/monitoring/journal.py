"""What has happened, as far as people and programs ask for it: the last outcomes, how many when, and counts."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace

from runner.events import Cached, Finished, Moved
from runner.monitoring import metrics
from runner.monitoring.metrics import Metrics
from runner.monitoring.status import Outcome, Period

# How many outcomes are remembered, and how many characters of each one's sentence.
_OUTCOMES, _LONGEST = 100, 1000
# A period, in seconds, and how many of them: twelve hours.
_PERIOD, _PERIODS = 900.0, 48

_VERDICTS = {
    *("ok", "script", "oom", "disk", "pip", "timeout", "lifetime", "artifact", "gpu", "stopped", "machine"),
    *("refused", "none"),
}


class Journal:
    """``clock`` gives monotonic seconds, ``now`` seconds since 1970. For one thread."""

    def __init__(
        self, counts: Metrics, clock: Callable[[], float] = time.monotonic, now: Callable[[], float] = time.time
    ) -> None:
        self.counts, self.clock, self.now = counts, clock, now
        self._outcomes: deque[Outcome] = deque(maxlen=_OUTCOMES)
        self._periods: deque[Period] = deque(maxlen=_PERIODS)

    @property
    def outcomes(self) -> tuple[Outcome, ...]:
        """The last ones, the newest first."""
        return tuple(reversed(self._outcomes))

    def periods(self) -> tuple[Period, ...]:
        """Return the last ones, the newest last, without gaps."""
        self._advance()
        return tuple(self._periods)

    def waited(self, time_added: float | None) -> None:
        """An experiment's first attempt begins, whose message was made then."""
        if time_added is not None:
            self.counts.observe(metrics.PHASES, max(0.0, self.now() - time_added), metrics.WAIT)

    def phase(self, name: str, seconds: float) -> None:
        """A phase of an attempt is over."""
        self.counts.observe(metrics.PHASES, seconds, metrics.PHASE_NAMES.get(name, "other"))

    def cached(self, event: Cached) -> None:
        """An artifact was in the cache, or not."""
        self.counts.add(metrics.HITS if event.hit else metrics.MISSES, event.hash)
        self.counts.add(metrics.CACHE_REQUESTS, "hit" if event.hit else "miss")

    def redelivered(self) -> None:
        """A message came again while its experiment runs."""
        self.counts.add(metrics.REDELIVERED)

    def moved(self, event: Moved) -> None:
        """An attempt has moved bytes."""
        for direction, size in (("fetched", event.fetched), ("stored", event.stored)):
            if size:
                self.counts.add(metrics.TRANSFERRED, direction, event.scheme, by=size)

    def ended(self, queue: str, key: str, finished: Finished, decision: str, *, attempt: int, seconds: float) -> None:
        """A message's fate is decided; ``attempt`` is 0 when there was none."""
        self._outcomes.append(
            Outcome(
                time=self.now(),
                queue=queue,
                key=key,
                attempt=attempt,
                outcome=finished.outcome,
                verdict=finished.verdict,
                sentence=finished.sentence[:_LONGEST],
                seconds=round(seconds, 3),
                decision=decision,
            )
        )
        verdict = finished.verdict or "none"
        self.counts.add(metrics.ATTEMPTS, finished.outcome, verdict if verdict in _VERDICTS else "other")
        self._advance()
        what = finished.outcome if finished.outcome in ("completed", "failed") else "other"
        last = self._periods[-1]
        self._periods[-1] = replace(last, **{what: getattr(last, what) + 1})

    def refused(self, queue: str, sentence: str, decision: str) -> None:
        """A message can never run."""
        self.counts.add(metrics.REFUSED)
        self._outcomes.append(
            Outcome(self.now(), queue, "", 0, "refused", "refused", sentence[:_LONGEST], 0.0, decision)
        )

    def _advance(self) -> None:
        """Bring the periods up to now; a clock that goes back changes nothing."""
        current = self.now() // _PERIOD * _PERIOD
        if not self._periods:
            self._periods.append(Period(current))
        begin = max(self._periods[-1].begin, current - _PERIODS * _PERIOD)
        while begin + _PERIOD <= current:
            begin += _PERIOD
            self._periods.append(Period(begin))
