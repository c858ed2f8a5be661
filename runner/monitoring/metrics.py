"""Every metric declared once, and the counts behind them; docs/metrics.md says what each is for.

The loop counts, and nothing else: who asks gets a copy, and ``exposition.py`` puts it into Prometheus's words.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from itertools import accumulate

COUNTER, GAUGE, HISTOGRAM = "counter", "gauge", "histogram"
OLD_COUNTER = "untyped"
"""A counter under a name of the earlier runner's: Prometheus wants names of counters to end in ``_total``."""

# Series whose label names one experiment or object: so long they stay after they changed last (seconds), so many of
# each metric at most. Scrapes are seldom more than a minute apart.
_KEPT = 300.0
_MOST = 32
# So many series of one metric there are at most, though nobody asks for them.
_CROWD = 5000
# In seconds.
_BUCKETS = (0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 4 * 3600.0, 12 * 3600.0, 48 * 3600.0)

Labels = tuple[str, ...]


@dataclass(frozen=True)
class Metric:
    """A metric. ``passing`` are labels whose values are without end: such series are soon counted under ""."""

    name: str
    kind: str
    text: str
    labels: tuple[str, ...] = ()
    passing: tuple[str, ...] = ()


_QUEUE = ("host", "queue_type", "queue_name")
_EXPERIMENT = (*_QUEUE, "project", "experiment")
_ONE_QUEUE = ("queue_type", "queue_name")

# Protocol section 10.
REFRESHED = Metric(
    "runner_queue_refresh_success", OLD_COUNTER, "Lists of queues that could be had.", ("host", "project")
)
NOT_REFRESHED = Metric(
    "runner_queue_refresh_fail", OLD_COUNTER, "Lists of queues that could not be had.", ("host", "project")
)
CHECKED = Metric("runner_queue_checked", OLD_COUNTER, "Times that a queue was asked for work.", _QUEUE)
IGNORED = Metric(
    "runner_queue_ignored",
    OLD_COUNTER,
    "Times that a queue was not asked: it is paused, or its turn is later.",
    _QUEUE,
)
COMPLETED = Metric(
    "runner_project_completed",
    OLD_COUNTER,
    "Attempts that ended, however they did.",
    _EXPERIMENT,
    passing=("project", "experiment"),
)
RUNNING = Metric("runner_project_running", GAUGE, "Experiments that run.", _EXPERIMENT)
HITS = Metric(
    "runner_cache_hits", OLD_COUNTER, "Artifacts that were in the cache.", ("host", "hash"), passing=("hash",)
)
MISSES = Metric(
    "runner_cache_misses", OLD_COUNTER, "Artifacts that were not in the cache.", ("host", "hash"), passing=("hash",)
)

ATTEMPTS = Metric(
    "runner_attempts_total", COUNTER, "Attempts that ended, by what became of them.", ("outcome", "verdict")
)
PHASES = Metric(
    "runner_phase_seconds", HISTOGRAM, "How long attempts took to wait in a queue, fetch and so on.", ("phase",)
)
TRANSFERRED = Metric(
    "runner_transferred_bytes_total", COUNTER, "Bytes fetched from stores and stored there.", ("direction", "scheme")
)
CACHE_REQUESTS = Metric(
    "runner_cache_requests_total", COUNTER, "Immutable artifacts that were asked for, by hit and miss.", ("result",)
)
REFUSED = Metric("runner_messages_refused_total", COUNTER, "Messages that nobody can ever run.")
REDELIVERED = Metric(
    "runner_messages_redelivered_total", COUNTER, "Messages that a broker sent again while their experiment ran."
)

EXPERIMENTS = Metric("runner_experiments", GAUGE, "Experiments under way, by phase.", ("phase",))
CORES = Metric("runner_cores", GAUGE, "Cores to give out.", ("state",))
MEMORY = Metric("runner_memory_bytes", GAUGE, "Memory to give out.", ("state",))
DISK = Metric("runner_disk_bytes", GAUGE, "Disk to give out.", ("state",))
GPU_SLOTS = Metric("runner_gpu_slots", GAUGE, "Slots of a GPU to give out.", ("gpu", "state"))
GPU_USABLE = Metric("runner_gpu_usable", GAUGE, "1 while a GPU may be given out.", ("gpu",))
CACHE = Metric("runner_cache_bytes", GAUGE, "Disk that is used only to save time.", ("kind",))
PAUSE = Metric("runner_queue_pause_seconds", GAUGE, "For how long a queue is not asked, 0 if it is.", _ONE_QUEUE)
HELD = Metric("runner_queue_held", GAUGE, "1 while a queue's first message waits for resources.", _ONE_QUEUE)
HOLDING = Metric("runner_message_held_seconds", GAUGE, "Age of the message of a queue held longest.", _ONE_QUEUE)
WINDOW = Metric(
    "runner_ack_window_seconds",
    GAUGE,
    "Until a broker takes back a message of a queue, where it says when.",
    _ONE_QUEUE,
)
REACHABLE = Metric(
    "runner_queues_reachable",
    GAUGE,
    "1 while a broker, account or directory lists its queues.",
    ("queue_type", "project"),
)
READY = Metric("runner_ready", GAUGE, "1 while work is taken, and all queues can be reached.")
INFO = Metric("runner_info", GAUGE, "Always 1; the label is what matters.", ("version",))

ALL: tuple[Metric, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Metric))
_COUNTED = (
    *(CHECKED, IGNORED, COMPLETED, HITS, MISSES, ATTEMPTS, PHASES, TRANSFERRED, CACHE_REQUESTS, REFUSED, REDELIVERED),
)
"""Those that are counted as things happen; the others come from a status."""

PHASE_NAMES = {"fetch": "fetch", "prepare": "environment", "run": "run", "return": "upload"}
"""What people call the phases of an attempt (see events.Phase)."""
WAIT = "wait"
"""The time before: in the queue."""


@dataclass(frozen=True)
class Family:
    """A metric's values by its labels; a histogram's values are sums, and its buckets count all below each bound."""

    metric: Metric
    values: Mapping[Labels, float] = field(default_factory=dict)
    buckets: Mapping[Labels, tuple[int, ...]] = field(default_factory=dict)

    @property
    def bounds(self) -> tuple[float, ...]:
        """Upper bounds of the buckets; the last bucket has none."""
        return _BUCKETS


class Metrics:
    """Counts. ``clock`` gives monotonic seconds. For one thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # What has no labels is there from the start, or its first increase could not be seen.
        self._values: dict[Metric, dict[Labels, float]] = {
            metric: {} if metric.labels else {(): 0.0} for metric in _COUNTED
        }
        self._touched: dict[Metric, dict[Labels, float]] = {metric: {} for metric in _COUNTED}
        self._buckets: dict[Metric, dict[Labels, list[int]]] = {}

    def add(self, metric: Metric, *labels: str, by: float = 1.0) -> None:
        """Count; the labels are all but ``host``, in their order."""
        self._count(metric, labels, by)
        if len(self._values[metric]) > _CROWD:
            self._thin(metric)

    def _count(self, metric: Metric, labels: Labels, by: float) -> None:
        values = self._values[metric]
        values[labels] = values.get(labels, 0.0) + by
        self._touched[metric][labels] = self._clock()

    def observe(self, metric: Metric, value: float, *labels: str) -> None:
        """Put a value into a histogram."""
        self.add(metric, *labels, by=value)
        buckets = self._buckets.setdefault(metric, {}).setdefault(labels, [0] * (len(_BUCKETS) + 1))
        buckets[bisect_left(_BUCKETS, value)] += 1

    def copied(self, queues: Collection[str]) -> tuple[Family, ...]:
        """Return all counts, without those of queues that are gone for a while; ``queues`` are there."""
        for metric in _COUNTED:
            self._fold(metric)
            self._forget(metric, queues)
        return tuple(
            Family(
                metric,
                dict(values),
                {labels: tuple(accumulate(counts)) for labels, counts in self._buckets.get(metric, {}).items()},
            )
            for metric, values in self._values.items()
        )

    def _fold(self, metric: Metric) -> None:
        """Count series that name something passing, and are old or many, without that name."""
        names = [name for name in metric.labels if name != "host"]
        passing = [index for index, name in enumerate(names) if name in metric.passing]
        touched = self._touched[metric]
        told = self._oldest(metric, lambda labels: any(labels[index] for index in passing))
        old = self._clock() - _KEPT
        for number, labels in enumerate(told):
            if touched[labels] < old or number < len(told) - _MOST:
                rest = tuple("" if index in passing else label for index, label in enumerate(labels))
                self._count(metric, rest, self._drop(metric, labels))

    def _forget(self, metric: Metric, queues: Collection[str]) -> None:
        """Drop series of queues that are gone for a while."""
        if "queue_name" in metric.labels:
            index = metric.labels.index("queue_name") - ("host" in metric.labels)
            touched, old = self._touched[metric], self._clock() - _KEPT
            for labels in [each for each in touched if each[index] not in queues and touched[each] < old]:
                self._drop(metric, labels)

    def _thin(self, metric: Metric) -> None:
        """Nobody has asked for long, and there is much to tell."""
        self._fold(metric)
        oldest = self._oldest(metric, lambda _labels: True)
        for labels in oldest[: max(0, len(oldest) - _CROWD // 2)]:
            self._drop(metric, labels)

    def _oldest(self, metric: Metric, which: Callable[[Labels], bool]) -> list[Labels]:
        touched = self._touched[metric]
        return sorted(filter(which, touched), key=touched.__getitem__)

    def _drop(self, metric: Metric, labels: Labels) -> float:
        del self._touched[metric][labels]
        return self._values[metric].pop(labels)
