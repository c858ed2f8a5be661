"""Three runners, two queues, three hundred short experiments, and everything breaks all the time.

    python -m benchmarks.chaos [--seed N] [--minutes N] [--experiments N]

Runners are killed and started again at random, connections to the broker are reset, the broker is restarted twice. At
the end every experiment must have exactly one complete result set, no message may be left and no process. What is
counted are executions beyond one for each experiment: those that were killed have to be repeated, others had better
not be.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import random
import re
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pika
import pika.exceptions

from benchmarks.__main__ import Bench
from tests.e2e.harness import Runner, until
from tests.servers import ceph, rabbitmq
from tests.servers.tcp import TcpProxy, proxied

QUEUES = ("rmq_chaos_a", "rmq_chaos_b")
SCRIPT = """import hashlib, os, pathlib, time
with open({marks!r}, 'a') as file: file.write('x')
time.sleep({length})
pathlib.Path('../modeldir/result').write_bytes(hashlib.sha256({key!r}.encode()).digest() * 1000)
print('done', {key!r})
"""


class Chaos:
    """The run: ``dice`` decides everything that is left to chance."""

    def __init__(self, bench: Bench, proxy: TcpProxy, dice: random.Random, experiments: int) -> None:
        self.bench, self.dice = bench, dice
        self.marks = bench.place.root / "marks"
        self.marks.mkdir()
        self.keys = [f"chaos{number:04}" for number in range(experiments)]
        self.proxy = proxy
        self.runners: list[Runner] = []
        self.kills = self.killed = self.resets = self.sent = 0
        for name in QUEUES:
            bench.broker.declare(name, durable=True)

    def start(self, number: int) -> Runner:
        """Start a runner, in the same working directory each time that it has this number."""
        working = self.bench.place.root / f"working{number}"
        working.mkdir(exist_ok=True)
        broker = self.bench.broker
        url = broker.url.replace(str(broker.amqp_port), str(self.proxy.port))
        options = ("--amqp-url", url, "--amqp-mgt-url", broker.management_url, "--max-mem", "4gb")
        return self.bench.place.start(*options, "--working-dir", str(working), local=False)

    def go(self, minutes: float) -> None:
        """Publish all messages over that time, while things break."""
        self.runners = [self.start(number) for number in range(3)]
        begun = time.monotonic()
        pace = minutes * 60 / len(self.keys)
        restarts = [begun + minutes * 60 * part for part in (0.33, 0.67)]
        next_kill, next_reset = begun + 15, begun + 10
        waiting = list(self.keys)
        while waiting or time.monotonic() < begun + minutes * 60:
            now = time.monotonic()
            while waiting and begun + self.sent * pace <= now:
                self._publish(waiting.pop(0))
            if now >= next_kill:
                self._kill()
                next_kill = now + self.dice.uniform(5, 25)
            if now >= next_reset:
                self.resets += self.proxy.reset()
                next_reset = now + self.dice.uniform(10, 40)
            if restarts and now >= restarts[0]:
                restarts.pop(0)
                self.bench.broker.restart()
            time.sleep(0.1)

    def _publish(self, key: str) -> None:
        self.sent += 1
        script = SCRIPT.format(marks=str(self.marks / key), length=round(self.dice.uniform(0, 4), 2), key=key)
        body = self.bench.message(key, script)
        while True:
            try:
                self.bench.broker.publish(QUEUES[self.sent % 2], body)
                return
            except (pika.exceptions.AMQPError, OSError):
                time.sleep(0.5)

    def _kill(self) -> None:
        number = self.dice.randrange(len(self.runners))
        victim = self.runners[number]
        self.kills += 1
        victim.process.kill()
        victim.ended()
        self.killed += len(_under_way(victim))
        time.sleep(self.dice.uniform(0, 2))
        self.runners[number] = self.start(number)

    def calm_down(self) -> None:
        """Wait until nothing is left to do, and stop the runners."""
        until(lambda: all(self._depth(name) == 0 for name in QUEUES), "the queues are empty", 300)
        until(lambda: all(len(self._marks(key)) for key in self.keys), "all were run", 300)
        until(lambda: not any(map(_under_way, self.runners)), "idle", 300)
        for runner in self.runners:
            assert runner.stop() == 0, runner.log

    def _depth(self, name: str) -> int:
        found = self.bench.broker.api("GET", f"queues/%2f/{name}").json()
        return int(found.get("messages", 1))

    def _marks(self, key: str) -> str:
        path = self.marks / key
        return path.read_text() if path.exists() else ""

    def verdict(self) -> Iterator[tuple[str, object]]:
        """Yield what there is to know."""
        executions = [len(self._marks(key)) for key in self.keys]
        yield "experiments", len(self.keys)
        yield "with a complete result", sum(map(self._complete, self.keys))
        yield "runners killed", self.kills
        yield "experiments running when their runner was killed", self.killed
        yield "connections reset", self.resets
        yield "executions beyond one each", sum(executions) - len(self.keys)
        yield "messages left", sum(self.bench.broker.depth(name) for name in QUEUES)
        yield "processes left", len(_orphans(self.bench.place.root))

    def _complete(self, key: str) -> bool:
        """Check the stored objects of an experiment, every byte of them."""
        result = self._member(key, "modeldir", "result")
        said = self._member(key, "output", "output")
        return result == hashlib.sha256(key.encode()).digest() * 1000 and f"done {key}\n".encode() in said

    def _member(self, key: str, label: str, name: str) -> bytes:
        answer = self.bench.s3.call("GET", f"{self.bench.bucket}/experiments/{key}/{label}.tar")
        with suppress(tarfile.TarError, KeyError), tarfile.open(fileobj=io.BytesIO(answer.content)) as stored:
            found = stored.extractfile(name)
            return found.read() if found else b""
        return b""


def _under_way(runner: Runner) -> set[str]:
    """Name the experiments whose attempts the log says have begun, and not that they are over."""
    found: set[str] = set()
    for line in runner.log.splitlines():
        if (key := re.search(r"experiment '(\w+)', attempt", line)) and line.endswith(")"):
            (found.add if " starts (" in line else found.discard)(key[1])
    return found


def _orphans(root: Path) -> list[str]:
    found = subprocess.run(["pgrep", "-af", str(root)], capture_output=True, text=True, check=False).stdout
    return [line for line in found.splitlines() if "pgrep" not in line]


def main() -> None:
    """Run it, print what came of it, and fail if anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--experiments", type=int, default=300)
    given = parser.parse_args()
    with ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="studio-runner-chaos-")))
        bench = Bench(stack.enter_context(rabbitmq.started()), stack.enter_context(ceph.started()), root)
        stack.callback(bench.place.close)
        proxy = stack.enter_context(proxied(bench.broker.amqp_port))
        chaos = Chaos(bench, proxy, random.Random(given.seed), given.experiments)
        begun = time.monotonic()
        chaos.go(given.minutes)
        chaos.calm_down()
        told = dict(chaos.verdict())
        told = {"seed": given.seed, "minutes": round((time.monotonic() - begun) / 60, 1), **told}
        for name, value in told.items():
            print(f"{name:50}{value}")
        if told["with a complete result"] != given.experiments or told["messages left"] or told["processes left"]:
            for runner in bench.place.runners:
                print(runner.log, file=sys.stderr)
            sys.exit("something was lost")


if __name__ == "__main__":
    main()
