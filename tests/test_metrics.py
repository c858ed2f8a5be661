"""Metrics: names that dashboards know, labels that do not pile up, and documents that tell the truth about them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from runner.events import Cached, Finished, Moved
from runner.monitoring import metrics
from runner.monitoring.exposition import render
from runner.monitoring.journal import Journal
from runner.monitoring.metrics import ALL, Metrics
from runner.monitoring.status import Bar, Experiment, Queue, Snapshot, Source, Status
from tests.loops import Clock

ROOT = Path(__file__).resolve().parent.parent

# Protocol section 10, word for word.
PROTOCOL = {
    "runner_queue_refresh_success": "host, project",
    "runner_queue_refresh_fail": "host, project",
    "runner_queue_checked": "host, queue_type, queue_name",
    "runner_queue_ignored": "host, queue_type, queue_name",
    "runner_project_completed": "host, queue_type, queue_name, project, experiment",
    "runner_project_running": "host, queue_type, queue_name, project, experiment",
    "runner_cache_hits": "host, hash",
    "runner_cache_misses": "host, hash",
}


def status(**members: object) -> Status:
    given = {"version": "1", "host": "node", "process": 7, "time": 1000.0, "started": 900.0, "idle": "", **members}
    return Status(**given)  # type: ignore[arg-type]


def full() -> Snapshot:
    """A snapshot in which every metric has a value."""
    clock = Clock(1000.0)
    journal = Journal(Metrics(clock), clock, clock)
    journal.waited(998.0)
    journal.phase("run", 3.0)
    journal.phase("run", 70.0)
    for hit in (True, False):
        journal.cached(Cached("workspace", "h1", hit))
    journal.moved(Moved("s3", fetched=100, stored=7))
    journal.ended("rmq_q", "k", Finished("failed", "…", verdict="oom"), "given back", attempt=1, seconds=3.0)
    journal.redelivered()
    journal.refused("rmq_q", "…", "not tried again")
    for metric in (metrics.CHECKED, metrics.IGNORED):
        journal.counts.add(metric, "rmq", "rmq_q")
    journal.counts.add(metrics.COMPLETED, "rmq", "rmq_q", "p", "k")
    running = Experiment("rmq_q", "rmq", 'k"\\\n', "p", 1, "prepare", 990.0, 995.0, "1 cpus")
    queue = Queue("rmq_q", "rmq", running=1, why="…", pause=2.5, held=True, holding=10.0, window=1790.0)
    bars = (*(Bar(name, 1, 4) for name in ("cores", "memory", "disk")), Bar("GPU 0", 3, 16, "slots", "is lost"))
    shown = status(
        bars=bars,
        experiments=(running,),
        queues=(queue,),
        sources=(Source("broker", "rmq", 5, 1, "it is away"),),
        kept={"cache": 12},
    )
    return Snapshot(shown, journal.counts.copied(["rmq_q"]))


def samples(snapshot: Snapshot) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    families = text_string_to_metric_families(render(snapshot).decode())
    return {
        (each.name, tuple(sorted(each.labels.items()))): each.value for family in families for each in family.samples
    }


def value(snapshot: Snapshot, name: str, **labels: str) -> float | None:
    return samples(snapshot).get((name, tuple(sorted(labels.items()))))


def test_every_metric_is_exported_with_the_labels_that_it_declares() -> None:
    text = render(full()).decode()
    found: dict[str, set[str]] = {}
    for name, labels in samples(full()):
        base = re.sub("_(bucket|count|sum)$", "", name) if name.startswith("runner_phase_seconds") else name
        found.setdefault(base, set()).update(label for label, _ in labels if label != "le")
    for metric in ALL:
        assert f"# TYPE {metric.name} {metric.kind}\n" in text
        assert found[metric.name] == set(metric.labels), metric.name
    assert {name for name in found if name.startswith("runner_")} == {metric.name for metric in ALL}


def test_dashboards_of_the_earlier_runner_find_their_names() -> None:
    declared = {metric.name: ", ".join(metric.labels) for metric in ALL}
    assert PROTOCOL.items() <= declared.items()
    snapshot = full()
    labels = {"host": "node", "queue_type": "rmq", "queue_name": "rmq_q", "project": "p"}
    assert value(snapshot, "runner_project_completed", experiment="k", **labels) == 1
    assert value(snapshot, "runner_project_running", experiment='k"\\\n', **labels) == 1
    assert value(snapshot, "runner_queue_refresh_fail", host="node", project="broker") == 1


def test_what_the_numbers_say() -> None:
    snapshot = full()
    assert value(snapshot, "runner_cores", state="free") == 3
    assert value(snapshot, "runner_gpu_slots", gpu="GPU 0", state="free") == 13
    assert value(snapshot, "runner_gpu_usable", gpu="GPU 0") == 0
    assert value(snapshot, "runner_attempts_total", outcome="failed", verdict="oom") == 1
    assert value(snapshot, "runner_transferred_bytes_total", direction="fetched", scheme="s3") == 100
    assert value(snapshot, "runner_experiments", phase="environment") == 1
    assert value(snapshot, "runner_phase_seconds_sum", phase="run") == 73
    assert value(snapshot, "runner_phase_seconds_sum", phase="wait") == 2
    buckets = {
        below: value(snapshot, "runner_phase_seconds_bucket", phase="run", le=below) for below in ("1", "5", "+Inf")
    }
    assert buckets == {"1": 0, "5": 1, "+Inf": 2}
    assert value(snapshot, "runner_ready") == 0, "its broker is away"


def test_a_verdict_that_nobody_knows_makes_no_series_of_its_own() -> None:
    journal = Journal(Metrics())
    for number in range(50):
        finished = Finished("failed", "…", verdict=f"word {number}")
        journal.ended("q", "k", finished, "given back", attempt=1, seconds=1.0)
    assert (
        value(Snapshot(status(), journal.counts.copied([])), "runner_attempts_total", outcome="failed", verdict="other")
        == 50
    )


def test_series_of_finished_experiments_go_away_and_sums_stay_right() -> None:
    clock = Clock(1000.0)
    counts = Metrics(clock)

    def completed() -> dict[str, float]:
        found = samples(Snapshot(status(), counts.copied(["local_q"])))
        return {dict(labels)["experiment"]: number for (name, labels), number in found.items() if "completed" in name}

    for number in range(200):
        counts.add(metrics.COMPLETED, "local", "local_q", "p", f"k{number}")
        clock.now += 0.01
    seen = completed()
    assert len(seen) == 33
    assert seen["k199"] == 1, "a scrape soon after still sees who it was"
    assert seen[""] == 168
    clock.now += 301
    assert completed() == {"": 200}
    counts.add(metrics.COMPLETED, "local", "local_q", "p", "k1")
    assert completed() == {"": 200, "k1": 1}


def test_memory_has_an_end_though_nobody_asks() -> None:
    counts = Metrics()
    for number in range(12_000):
        counts.add(metrics.COMPLETED, "local", "local_q", "p", f"k{number}")
        counts.add(metrics.CHECKED, "rmq", f"rmq_{number}")
    assert all(len(values) <= 5000 for values in counts._values.values())
    found = samples(Snapshot(status(), counts.copied(["local_q"])))
    assert sum(number for (name, _), number in found.items() if name == "runner_project_completed") == 12_000


def test_series_of_queues_that_are_gone_go_away() -> None:
    clock = Clock(1000.0)
    counts = Metrics(clock)
    for name in ("local_a", "local_b"):
        counts.add(metrics.CHECKED, "local", name)
        counts.add(metrics.COMPLETED, "local", name, "p", "k")

    def queues() -> set[str]:
        found = samples(Snapshot(status(), counts.copied(["local_b"])))
        return {dict(labels)["queue_name"] for _, labels in found if "queue_name" in dict(labels)}

    assert queues() == {"local_a", "local_b"}
    clock.now += 301
    assert queues() == {"local_a", "local_b"}, "the last count of an experiment is seen for as long as any"
    clock.now += 301
    assert queues() == {"local_b"}


def test_the_documentation_lists_exactly_what_is_exported() -> None:
    rows = re.findall(
        r"^\| `(runner_\w+)` \| (\w+) \| ([\w, ]*)\|", (ROOT / "docs" / "metrics.md").read_text(), re.MULTILINE
    )
    assert {(name, kind, labels.strip()) for name, kind, labels in rows} == {
        (metric.name, metric.kind, ", ".join(metric.labels)) for metric in ALL
    }


@pytest.mark.parametrize("name", ["alerts.yml", "dashboard.json"])
def test_the_examples_ask_for_what_there_is(name: str) -> None:
    text = (ROOT / "examples" / "prometheus" / name).read_text()
    if name.endswith("json"):
        assert json.loads(text)["title"] == "studio-runner"
    asked = set(re.findall(r"\brunner_\w+", text))
    known = {metric.name for metric in ALL} | {"runner_phase_seconds_bucket"}
    assert len(asked) > 5
    assert asked <= known


def test_promtool_has_nothing_to_complain_of() -> None:
    promtool = shutil.which("promtool")
    if not promtool:
        pytest.skip("no promtool: apt-get install prometheus")
    checked = subprocess.run([promtool, "check", "metrics"], input=render(full()), capture_output=True, check=False)
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, b"")
    rules = [promtool, "check", "rules", ROOT / "examples" / "prometheus" / "alerts.yml"]
    assert subprocess.run(rules, capture_output=True, check=False).returncode == 0
