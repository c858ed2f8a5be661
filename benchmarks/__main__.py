"""Measure the built runner with a real RabbitMQ and a real S3 server on loopback, and print a table.

    python -m benchmarks [latency] [throughput] [memory] [idle] [endurance]

The floor that figures are compared with is measured in the same run: what starting the experiment's Python takes when
nothing else is done.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import pika

from runner.retry import Patience
from runner.storage import StoreOptions, connect
from runner.storage.base import locate
from tests.e2e.harness import Runner, Workplace, archive, until
from tests.servers import ceph, rabbitmq

ROOT = Path(__file__).resolve().parent.parent
LABELS = ("modeldir", "retval", "output", "tb", "_metrics", "_metadata")
FIRST_LINE = "import time; print('first line at', time.time(), flush=True)\n"
MIB = 2**20


class Bench:
    """The servers, and a runner on them."""

    def __init__(self, broker: rabbitmq.Broker, s3: ceph.S3Server, root: Path) -> None:
        self.broker, self.s3, self.bucket = broker, s3, s3.bucket()
        program = [sys.executable, str(ROOT / "studio-runner.pyz")]
        self.place = Workplace(root / "place", root, program)

    @contextmanager
    def runner(self) -> Iterator[Runner]:
        """Run the built program until the context ends."""
        options = ("--amqp-url", self.broker.url, "--amqp-mgt-url", self.broker.management_url, "--max-mem", "8gb")
        runner = self.place.start(*options, local=False)
        yield runner
        assert runner.stop() == 0, runner.log

    def message(self, key: str, script: str) -> bytes:
        """Store a workspace, and return a message as StudioML's client writes it, with all its artifacts."""
        keys = {"aws": {"access_key": self.s3.access_key, "secret_access_key": self.s3.secret_key}}
        blob = f"blobstore/{key}.tar"
        self.s3.put(self.bucket, blob, archive({"main.py": script.encode()}))
        places = {"workspace": blob, **{label: f"experiments/{key}/{label}.tar" for label in LABELS}}
        artifacts = {
            label: {
                "qualified": f"s3://{self.s3.host}/{self.bucket}/{place}",
                "bucket": self.bucket,
                "key": place,
                "mutable": label != "workspace",
                "unpack": True,
                "credentials": keys,
            }
            for label, place in places.items()
        }
        experiment = {
            "key": key,
            "filename": "main.py",
            "args": [],
            "pythonver": "{}.{}".format(*sys.version_info[:2]),
            "pythonenv": [],
            "artifacts": artifacts,
            "resources_needed": {"cpus": 1, "ram": "64mb", "hdd": "5gb"},
            "time_added": time.time(),
        }
        return json.dumps({"experiment": experiment, "config": {"saveWorkspaceFrequency": "1m"}}).encode()

    def first_line(self, key: str) -> float:
        """Return when the experiment's first line ran, in seconds since 1970."""
        body = self.s3.call("GET", f"{self.bucket}/experiments/{key}/output.tar").content
        found = re.search(rb"first line at ([\d.]+)", body)
        assert found, body
        return float(found[1])


def acknowledged(runner: Runner, key: str) -> float:
    """Return when the log says that a message was acknowledged, in seconds since 1970."""
    line = until(lambda: next((x for x in runner.log.splitlines() if f"'{key}'" in x and "acknowledged" in x), ""), key)
    return datetime.strptime(line[:23], "%Y-%m-%d %H:%M:%S,%f").astimezone().timestamp()


def latency(bench: Bench) -> Iterator[tuple[str, str, str]]:
    """Publish one message at a time, twenty times, into an idle runner with a warm environment."""
    queue = bench.broker.declare("rmq_latency")
    first, done = [], []
    with bench.runner() as runner, pika.BlockingConnection(pika.URLParameters(bench.broker.url)) as connection:
        channel = connection.channel()
        for number in range(21):
            key = f"latency{number}"
            body = bench.message(key, FIRST_LINE)
            published = time.time()
            channel.basic_publish("StudioML.topic", f"StudioML.{queue}", body)
            ended = acknowledged(runner, key)
            if number:  # the first one builds the environment
                first.append(bench.first_line(key) - published)
                done.append(ended - published)
            time.sleep(0.5)  # idle again, its next attempt's process ready
    floor = bare_start()
    yield "publish to first line, median of 20", spread(first), "at most 0.4 s"
    yield "  times a bare start of the same Python", f"{statistics.median(first) / floor:.1f} x {floor:.3f} s", ""
    yield "publish to acknowledged, median of 20", spread(done), "at most 0.8 s"


def spread(values: list[float]) -> str:
    """Write the median, and the smallest and largest value."""
    return f"{statistics.median(values):.3f} s ({min(values):.3f} to {max(values):.3f})"


def bare_start() -> float:
    """Return how long the experiment's Python takes to its first line when nothing else is done."""
    took = []
    for _ in range(20):
        begun = time.time()
        out = subprocess.run([sys.executable, "-c", FIRST_LINE], capture_output=True, check=True, text=True).stdout
        took.append(float(out.split()[-1]) - begun)
    return statistics.median(took)


def throughput(bench: Bench) -> Iterator[tuple[str, str, str]]:
    """Publish fifty messages at once."""
    queue = bench.broker.declare("rmq_throughput")
    bodies = [bench.message(f"many{number}", FIRST_LINE) for number in range(50)]
    with bench.runner() as runner:
        bench.broker.publish(queue, bench.message("warm", FIRST_LINE))
        acknowledged(runner, "warm")
        begun = time.time()
        for body in bodies:
            bench.broker.publish(queue, body)
        until(lambda: runner.log.count("acknowledged") == 51, "all fifty", 300)
        ended = max(acknowledged(runner, f"many{number}") for number in range(50))
    yield f"50 experiments at once on {os.cpu_count()} cores", f"{ended - begun:.1f} s", "at most 30 s"


def memory(bench: Bench) -> Iterator[tuple[str, str, str]]:
    """Watch an attempt that downloads, unpacks, changes and uploads a large artifact."""
    queue = bench.broker.declare("rmq_memory")
    script = "with open('../modeldir/data', 'r+b') as file:\n    file.write(b'changed')\n" + FIRST_LINE
    with bench.runner() as runner:
        for size in (64, 1024):
            key = f"memory{size}"
            body = bench.message(key, script)
            store_large(bench, f"experiments/{key}/modeldir.tar", size)
            bench.broker.publish(queue, body)
            peak = until_done(runner, key)
            yield f"peak memory of an attempt with {size} MiB", f"{peak:.0f} MiB", "at most 90 MiB"


def store_large(bench: Bench, key: str, size: int) -> None:
    """Store an archive of one file of random bytes, as our own client does."""
    location = locate(f"s3://{bench.s3.host}/{bench.bucket}/{key}")
    store = connect(location, bench.s3.credentials, StoreOptions(patience=Patience(60)))

    class Random:
        def read(self, wanted: int) -> bytes:
            return os.urandom(wanted)

    with store.create(key) as out, tarfile.open(fileobj=out, mode="w|", bufsize=MIB) as tar:  # type: ignore[call-overload]
        member = tarfile.TarInfo("data")
        member.size = size * MIB
        tar.addfile(member, Random())


def until_done(runner: Runner, key: str) -> float:
    """Wait for an experiment's end; return the most memory that an attempt's process had, in MiB."""
    peak = 0.0
    end = time.monotonic() + 300
    while not any(f"'{key}'" in line and "acknowledged" in line for line in runner.log.splitlines()):
        assert time.monotonic() < end, runner.log
        for pid in attempts(runner.process.pid):
            peak = max(peak, status(pid, "VmHWM") / 1024)
        time.sleep(0.05)
    return peak


def attempts(supervisor: int) -> list[int]:
    """List a supervisor's children: the attempts that run, and the one that is kept ready."""
    children = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()
    return [int(pid) for pid in children]


def status(pid: int, name: str) -> int:
    """Return a field of /proc/PID/status, in KiB; 0 for a process that is gone."""
    try:
        found = re.search(rf"{name}:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return 0
    return int(found[1]) if found else 0


def idle(bench: Bench) -> Iterator[tuple[str, str, str]]:
    """Let a runner watch five empty queues."""
    for number in range(5):
        bench.broker.declare(f"rmq_idle{number}")
    with bench.runner() as runner:
        until(lambda: runner.log.count("rmq_idle") >= 5 or runner.log.count("connected"), "the queues are found")
        time.sleep(10)
        begun, before = time.monotonic(), cpu(runner.process.pid)
        time.sleep(30)
        share = (cpu(runner.process.pid) - before) / (time.monotonic() - begun)
        resident = status(runner.process.pid, "VmRSS") / 1024
        spare = max(status(pid, "VmRSS") for pid in attempts(runner.process.pid)) / 1024
    yield "idle supervisor, 5 empty queues: of a core", f"{share:.2%}", "at most 1 %"
    yield "  its memory", f"{resident:.0f} MiB", "at most 60 MiB"
    yield "  memory of the attempt that it keeps ready", f"{spare:.0f} MiB", ""


def cpu(pid: int) -> float:
    """Return the seconds of CPU that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def endurance(bench: Bench) -> Iterator[tuple[str, str, str]]:
    """Run two hundred experiments, and see what is left of them."""
    queue = bench.broker.declare("rmq_endurance")
    home = bench.place.working / "studio-runner"
    sizes = []
    with bench.runner() as runner:
        pid = runner.process.pid
        for number in range(20):
            for nth in range(10):
                bench.broker.publish(queue, bench.message(f"endured{number}-{nth}", FIRST_LINE))
            until(lambda number=number: runner.log.count("acknowledged") == 10 * (number + 1), "all ten", 120)
            sizes.append(status(pid, "VmRSS"))
            if number == 4:
                descriptors = count_descriptors(pid)
        time.sleep(2)
        left = len(attempts(pid)) - 1  # one is kept ready
        more = count_descriptors(pid) - descriptors
        directories = len(list((home / "experiments").iterdir()))
    # Of the first fifty, memory is being filled that is used again.
    growth = statistics.linear_regression(range(50, 200, 10), sizes[5:]).slope
    yield "200 experiments: the supervisor grows by", f"{growth:.2f} KiB for each, to {sizes[-1] / 1024:.0f} MiB", ""
    yield "  processes, directories, descriptors left", f"{left}, {directories}, {more}", "0, 0, 0"


def count_descriptors(pid: int) -> int:
    """Count what a process has open."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


BENCHES: dict[str, Callable[[Bench], Iterator[tuple[str, str, str]]]] = {
    "latency": latency,
    "throughput": throughput,
    "memory": memory,
    "idle": idle,
    "endurance": endurance,
}


def main() -> None:
    """Run the benchmarks that are named, or all."""
    chosen: dict[str, Any] = {name: BENCHES[name] for name in sys.argv[1:]} or BENCHES
    with ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="studio-runner-bench-")))
        bench = Bench(stack.enter_context(rabbitmq.started()), stack.enter_context(ceph.started()), root)
        stack.callback(bench.place.close)
        print(f"{'figure':46}{'measured':32}wanted")
        for run in chosen.values():
            for figure, measured, wanted in run(bench):
                print(f"{figure:46}{measured:32}{wanted}", flush=True)


if __name__ == "__main__":
    main()
