"""Measure each queue technology: how soon a message is taken when nothing else is to do, and what waiting costs.

    python -m benchmarks.queues [directory] [rabbitmq] [sqs]

Experiments use a directory store, so that only queues are measured. SQS is moto's on loopback.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import pika

from benchmarks.__main__ import ROOT, cpu
from tests.e2e.harness import Runner, Workplace, put, until
from tests.servers import rabbitmq, sqs
from tests.servers.faulty import FaultyProxy, faulty

_ROUNDS = 40
_QUEUES = 10
# A multiple of a long poll's 20 seconds.
_IDLE = 120.0


@dataclass
class Technology:
    """How to reach it: the runner's options, how to make a queue, how to publish, and what counts its requests."""

    options: list[str]
    create: Callable[[str], object]
    publish: Callable[[str, bytes], object]
    prefix: str
    proxy: FaultyProxy | None = None
    env: dict[str, str] = field(default_factory=dict)


def directory(place: Workplace, _stack: ExitStack) -> Technology:
    """Return queues that are directories."""

    def publish(queue: str, body: bytes) -> None:
        path = place.queues / queue / f".{time.time_ns()}"
        put(path, body)
        path.replace(path.with_name(path.name[1:]))

    return Technology(
        ["--queue-root", str(place.queues)], lambda queue: (place.queues / queue).mkdir(), publish, "local"
    )


def rabbit(place: Workplace, stack: ExitStack) -> Technology:
    """Return those of a RabbitMQ; requests to its management API are counted."""
    broker = stack.enter_context(rabbitmq.started())
    proxy = stack.enter_context(faulty(f"127.0.0.1:{broker.management_port}"))
    # It says nothing while queues are empty, and is not to be lost for that.
    connection = pika.BlockingConnection(pika.URLParameters(f"{broker.url}?heartbeat=0"))
    channel = stack.enter_context(closing(connection)).channel()
    options = ["--amqp-url", broker.url, "--amqp-mgt-url", f"http://{proxy.host}"]

    def publish(queue: str, body: bytes) -> None:
        channel.basic_publish("StudioML.topic", f"StudioML.{queue}", body)

    return Technology(options, broker.declare, publish, "rmq", proxy)


def amazon(_place: Workplace, stack: ExitStack) -> Technology:
    """Return those of an SQS."""
    server = stack.enter_context(sqs.started("moto"))
    proxy = stack.enter_context(faulty(f"127.0.0.1:{server.port}"))
    options = ["--sqs-region", sqs.REGION, "--sqs-endpoint", f"http://{proxy.host}"]
    return Technology(options, server.create, server.publish, "sqs", proxy, server.environ)


def started(runner: Runner, key: str) -> float:
    """Return when the log says that an attempt has started, in seconds since 1970."""
    line = until(lambda: next((x for x in runner.log.splitlines() if f"'{key}'" in x and "starts (" in x), ""), key)
    return datetime.strptime(line[:23], "%Y-%m-%d %H:%M:%S,%f").astimezone().timestamp()


def dispatch(place: Workplace, technology: Technology) -> Iterator[tuple[str, str]]:
    """Publish one message at a time into an idle runner with a warm environment, at moments of no pattern."""
    queue = f"{technology.prefix}_dispatch"
    technology.create(queue)
    took = []
    runner = place.start(*technology.options, local=False, env=technology.env)
    runner.saw("to give")
    for number in range(_ROUNDS + 1):
        key = f"{queue}{number}"
        body = json.dumps(place.message("pass", key=key)).encode()
        published = time.time()
        technology.publish(queue, body)
        taken = started(runner, key)
        if number:  # the first one waits for the queue to be found
            took.append(taken - published)
        until(lambda key=key: any(f"'{key}'" in x and "acknowledged" in x for x in runner.log.splitlines()), key)  # type: ignore[misc]
        time.sleep(random.uniform(0.4, 0.9))
    assert runner.stop() == 0
    p95 = statistics.quantiles(took, n=20)[-1]
    yield "published to started, p50 and p95", f"{statistics.median(took) * 1000:.0f} ms, {p95 * 1000:.0f} ms"


def idle(place: Workplace, technology: Technology) -> Iterator[tuple[str, str]]:
    """Let a runner wait for messages of ten empty queues."""
    for number in range(_QUEUES - 1):
        technology.create(f"{technology.prefix}_idle{number}")
    runner = place.start(*technology.options, local=False, env=technology.env)
    time.sleep(25)
    proxy = technology.proxy
    before, begun, asked = cpu(runner.process.pid), time.monotonic(), len(proxy.seen) if proxy else 0
    time.sleep(_IDLE)
    hours = (time.monotonic() - begun) / 3600
    yield f"CPU seconds an hour, {_QUEUES} empty queues", f"{(cpu(runner.process.pid) - before) / hours:.0f}"
    if proxy:
        requests = (len(proxy.seen) - asked) / hours
        yield "  HTTP requests an hour, for each queue", f"{requests:.0f}, {requests / _QUEUES:.0f}"
    runner.stop()


TECHNOLOGIES: dict[str, Callable[[Workplace, ExitStack], Technology]] = {
    "directory": directory,
    "rabbitmq": rabbit,
    "sqs": amazon,
}


def main() -> None:
    """Measure the technologies that are named, or all."""
    for name in sys.argv[1:] or TECHNOLOGIES:
        with ExitStack() as stack:
            root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="studio-runner-queues-")))
            (root / "working").mkdir()
            place = Workplace(root / "place", root / "working", [sys.executable, str(ROOT / "studio-runner.pyz")])
            stack.callback(place.close)
            os.environ["STUDIO_RUNNER_ROOT"] = str(root / "unpacked")
            technology = TECHNOLOGIES[name](place, stack)
            for measure in (dispatch, idle):
                for figure, measured in measure(place, technology):
                    print(f"{name:12}{figure:46}{measured}", flush=True)


if __name__ == "__main__":
    main()
