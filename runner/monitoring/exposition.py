"""A snapshot in the words of Prometheus. Only who is asked for it pays for the library."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from math import inf, isinf

from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import Metric as Exposed
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from runner.monitoring import metrics
from runner.monitoring.metrics import Family, Labels, Metric
from runner.monitoring.status import Snapshot, Status

_PROCESS = ProcessCollector(registry=None)
_BARS = {"cores": metrics.CORES, "memory": metrics.MEMORY, "disk": metrics.DISK}


def render(snapshot: Snapshot) -> bytes:
    """Return the text that Prometheus scrapes, format version 0.0.4."""
    return generate_latest(_Collected(snapshot))


class _Collected(Collector):
    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterator[Exposed]:
        host = self._snapshot.status.host
        for family in (*self._snapshot.families, *gauges(self._snapshot.status)):
            yield _exposed(family, host)
        yield from _PROCESS.collect()


def gauges(status: Status) -> Iterator[Family]:
    """Yield what a status says in numbers."""
    yield Family(metrics.INFO, {(status.version,): 1})
    yield Family(metrics.READY, {(): not status.fault})
    yield Family(metrics.REFRESHED, {(each.name,): each.succeeded for each in status.sources})
    yield Family(metrics.NOT_REFRESHED, {(each.name,): each.failed for each in status.sources})
    yield Family(metrics.REACHABLE, {(each.queue_type, each.name): not each.trouble for each in status.sources})
    for bar in status.bars:
        if bar.name in _BARS:
            yield Family(_BARS[bar.name], {("used",): bar.used, ("free",): bar.total - bar.used})
    cards = [bar for bar in status.bars if bar.unit == "slots"]
    slots: dict[Labels, float] = {(card.name, "used"): card.used for card in cards}
    yield Family(metrics.GPU_SLOTS, {**slots, **{(card.name, "free"): card.total - card.used for card in cards}})
    yield Family(metrics.GPU_USABLE, {(card.name,): not card.trouble for card in cards})
    yield Family(metrics.CACHE, {(kind,): size for kind, size in status.kept.items()})
    running = Counter((each.queue_type, each.queue, each.project, each.key) for each in status.experiments)
    yield Family(metrics.RUNNING, {labels: float(count) for labels, count in running.items()})
    yield Family(metrics.EXPERIMENTS, _by_phase(status))
    queues = [((each.queue_type, each.name), each) for each in status.queues]
    yield Family(metrics.PAUSE, {labels: each.pause for labels, each in queues})
    yield Family(metrics.HELD, {labels: each.held for labels, each in queues})
    yield Family(metrics.HOLDING, {labels: each.holding for labels, each in queues if each.holding is not None})
    yield Family(metrics.WINDOW, {labels: each.window for labels, each in queues if each.window is not None})


def _by_phase(status: Status) -> dict[Labels, float]:
    names = {**dict.fromkeys(metrics.PHASE_NAMES.values(), 0.0), "other": 0.0}
    for each in status.experiments:
        names[metrics.PHASE_NAMES.get(each.phase, "other")] += 1
    return {(name,): count for name, count in names.items()}


def _exposed(family: Family, host: str) -> Exposed:
    metric = family.metric
    kind = {metrics.OLD_COUNTER: "unknown"}.get(metric.kind, metric.kind)
    exposed = Exposed(metric.name.removesuffix("_total"), metric.text, kind)
    for values, value in family.values.items():
        labels = _labels(metric, values, host)
        if metric.kind != metrics.HISTOGRAM:
            exposed.add_sample(metric.name, labels, float(value))
            continue
        counts = family.buckets[values]
        for bound, count in zip((*family.bounds, inf), counts, strict=True):
            exposed.add_sample(
                f"{metric.name}_bucket", {**labels, "le": "+Inf" if isinf(bound) else f"{bound:g}"}, count
            )
        exposed.add_sample(f"{metric.name}_count", labels, counts[-1])
        exposed.add_sample(f"{metric.name}_sum", labels, value)
    return exposed


def _labels(metric: Metric, values: Labels, host: str) -> dict[str, str]:
    """Labels that only the host has go first."""
    given = (host, *values) if metric.labels[:1] == ("host",) else values
    return dict(zip(metric.labels, given, strict=True))
