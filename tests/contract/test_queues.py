"""What every queue server does, shown on each of them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from runner.loop import Loop
from runner.queues import amqp, discovery, files, matcher, sqs_search, sqs_sending
from runner.queues.base import Delivery, QueueServer
from runner.queues.files import Directory
from runner.queues.rabbitmq import Address, RabbitMQ
from runner.queues.sqs import SQS
from runner.queues.sqs_account import Options
from tests.loops import served
from tests.servers.rabbitmq import Broker
from tests.servers.sqs import REGION, SQSServer

WORK = {prefix: matcher(f"^{prefix}_.*$", "") for prefix in ("local", "rmq", "sqs")}
ROOT = Path(__file__).resolve().parent.parent.parent


@dataclass
class Backend:
    """One kind of server: how to open another view of it, how to publish, and where refused messages go."""

    loop: Loop
    queue: str
    open: Callable[..., QueueServer]
    publish: Callable[[str, bytes], None]
    dead: Callable[[], list[bytes]]
    spec: list[str]
    delete: Callable[[str], object]

    def soon(self, look: Callable[[], object], seconds: float = 45.0) -> object:
        """Serve the loop until something is true, and return it."""
        return served(self.loop, look, seconds=seconds)

    def take(self, server: QueueServer, queue: str = "") -> Delivery:
        found = self.soon(lambda: server.take(queue or self.queue))
        assert found, "no message came"
        return found  # type: ignore[return-value]

    def nothing(self, server: QueueServer, seconds: float = 0.7) -> bool:
        return not self.soon(lambda: server.take(self.queue), seconds)


@pytest.fixture(params=["directory", "rabbitmq", "moto", "ministack"])
def backend(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Backend]:
    with ExitStack() as stack:
        loop = Loop()
        stack.callback(loop.close)
        if request.param == "directory":
            yield _directory(stack, loop, tmp_path)
        elif request.param == "rabbitmq":
            monkeypatch.setattr(discovery, "_PACE", 0.5)
            yield _rabbitmq(stack, loop, request.getfixturevalue("rabbitmq"))
        else:
            yield _sqs(stack, loop, request.getfixturevalue(request.param), monkeypatch)


def _directory(stack: ExitStack, loop: Loop, root: Path) -> Backend:
    queue = "local_contract"
    (root / queue / ".dead").mkdir(parents=True)

    def open_(wanted: Callable[[str], bool] = WORK["local"]) -> QueueServer:
        server = Directory(root, wanted)
        stack.callback(server.close)
        return server

    def dead() -> list[bytes]:
        return [path.read_bytes() for path in (root / queue / ".dead").iterdir()]

    def publish(name: str, body: bytes) -> None:
        files.publish(root, name, body)

    return Backend(loop, queue, open_, publish, dead, ["files", str(root)], lambda name: shutil.rmtree(root / name))


def _rabbitmq(stack: ExitStack, loop: Loop, broker: Broker) -> Backend:
    queue = f"rmq_{uuid.uuid4().hex[:8]}"
    graveyard = broker.declare(f"dead_{queue}")
    arguments = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": graveyard, "x-consumer-timeout": 1_800_000}
    broker.declare(queue, arguments=arguments)
    stack.callback(broker.delete, graveyard)
    stack.callback(broker.delete, queue)

    def open_(wanted: Callable[[str], bool] = WORK["rmq"]) -> QueueServer:
        server = RabbitMQ(loop, Address(broker.url, broker.management_url), wanted)
        stack.callback(server.close)
        return server

    def dead() -> list[bytes]:
        wanted = {"count": 9, "ackmode": "ack_requeue_false", "encoding": "auto"}
        found = broker.api("POST", f"queues/%2f/{graveyard}/get", json=wanted).json()
        return [each["payload"].encode() for each in found]

    publish = lambda name, body: amqp.publish(broker.url, name, body)  # noqa: E731
    return Backend(loop, queue, open_, publish, dead, ["rabbitmq", broker.url], broker.delete)


def _sqs(stack: ExitStack, loop: Loop, aws: SQSServer, monkeypatch: pytest.MonkeyPatch) -> Backend:
    queue, graveyard = f"sqs_{uuid.uuid4().hex[:8]}", f"dead_{uuid.uuid4().hex[:8]}"
    stack.callback(aws.clear)
    aws.create(graveyard)
    aws.create(queue, RedrivePolicy=json.dumps({"deadLetterTargetArn": aws.arn(graveyard), "maxReceiveCount": "100"}))
    for name, value in aws.environ.items():
        monkeypatch.setenv(name, value)
    options = Options(region=REGION, endpoint=aws.endpoint)

    def open_(wanted: Callable[[str], bool] = WORK["sqs"]) -> QueueServer:
        server = SQS(loop, options, wanted)
        stack.callback(server.close)
        return server

    def publish(name: str, body: bytes) -> None:
        aws.create(name)
        sqs_sending.publish(options, name, body)

    def delete(name: str) -> None:
        aws.client.delete_queue(QueueUrl=aws.url(name))

    for pace in ("_SOONEST", "_LATEST", "_PACE"):
        monkeypatch.setattr(sqs_search, pace, 0.5)
    return Backend(loop, queue, open_, publish, lambda: aws.bodies(graveyard), ["sqs", aws.endpoint], delete)


def message(text: str) -> bytes:
    return json.dumps({"text": text}).encode()


def test_what_is_published_is_taken(backend: Backend) -> None:
    server = backend.open()
    assert backend.nothing(server)
    backend.publish(backend.queue, message("hello"))
    delivery = backend.take(server)
    assert (delivery.body, delivery.queue) == (message("hello"), backend.queue)
    assert not delivery.lost


def test_a_server_says_how_it_goes_and_for_how_long_a_message_may_be_held(backend: Backend) -> None:
    server = backend.open()
    assert backend.soon(lambda: backend.queue in server.queues())
    assert backend.soon(lambda: not any(each.trouble for each in server.refreshed())), "connected, too"
    (found,) = server.refreshed()
    assert found.succeeded >= 1
    assert "guest" not in found.name
    backend.publish(backend.queue, message("x"))
    window = backend.take(server).window
    most = {"local": None, "rmq": 1800.0, "sqs": 30.0}[server.kind]
    assert window == most if most is None else most - 20 < (window or 0) <= most


def test_the_queues_that_are_wanted_are_found(backend: Backend) -> None:
    prefix = backend.queue.partition("_")[0]
    for name in (f"{prefix}_found", f"{prefix}_found_response", "other_found"):
        backend.publish(name, message("x"))
    server = backend.open()
    backend.soon(lambda: f"{prefix}_found" in server.queues())
    assert {backend.queue, f"{prefix}_found"} <= set(server.queues())
    assert not {f"{prefix}_found_response", "other_found"} & set(server.queues())


def test_reports_go_to_the_queues_that_are_there_for_them(backend: Backend) -> None:
    response = f"{backend.queue}_response"
    backend.publish(response, b"first")
    server = backend.open()
    assert backend.soon(lambda: response in server.others())
    assert backend.soon(lambda: server.publish(response, b"second"))
    reader = backend.open(lambda name: name == response)
    held = [backend.take(reader, response) for _ in range(2)]
    assert sorted(delivery.body for delivery in held) == [b"first", b"second"]
    for delivery in held:
        delivery.ack()


def test_a_queue_that_is_deleted_is_known_as_such(backend: Backend) -> None:
    server = backend.open()
    assert backend.soon(lambda: backend.queue in server.queues())
    backend.soon(lambda: False, 5)  # seen for longer than an instant
    assert not server.deleted(backend.queue)
    backend.delete(backend.queue)
    assert backend.soon(lambda: server.deleted(backend.queue))
    assert backend.queue not in server.queues()


def test_an_acknowledged_message_is_gone(backend: Backend) -> None:
    first = backend.open()
    backend.publish(backend.queue, message("x"))
    backend.take(first).ack()
    assert backend.nothing(first)
    assert backend.nothing(backend.open())


def test_a_message_that_is_given_back_comes_again_to_whoever_asks(backend: Backend) -> None:
    first, second = backend.open(), backend.open()
    backend.publish(backend.queue, message("x"))
    held = backend.take(first)
    assert not held.redelivered
    held.give_back()
    again = backend.take(first)
    assert again.redelivered is (first.kind != "local")  # a file says nothing of who had it before
    again.give_back()
    first.rest(backend.queue)
    assert backend.take(second).body == message("x")


def test_two_takers_never_hold_the_same_message(backend: Backend) -> None:
    first, second = backend.open(), backend.open()
    backend.publish(backend.queue, message("x"))
    held = backend.take(first)
    assert backend.nothing(second)
    held.give_back()
    first.rest(backend.queue)
    backend.take(second).ack()
    assert backend.nothing(first)


def test_many_messages_of_one_queue_can_be_held_at_once_in_their_order(backend: Backend) -> None:
    server = backend.open()
    bodies = [message(str(number)) for number in range(12)]
    for body in bodies:
        backend.publish(backend.queue, body)
    held = [backend.take(server) for _ in bodies]
    assert [delivery.body for delivery in held] == bodies
    assert backend.nothing(server)
    for delivery in held:
        delivery.ack()
    assert backend.nothing(backend.open())


def test_a_refused_message_goes_to_the_dead(backend: Backend) -> None:
    server = backend.open()
    backend.publish(backend.queue, message("bad"))
    backend.take(server).refuse()
    assert backend.soon(backend.dead) == [message("bad")]
    assert backend.nothing(server)


def test_settling_twice_does_nothing(backend: Backend) -> None:
    server = backend.open()
    backend.publish(backend.queue, message("x"))
    backend.publish(backend.queue, message("y"))
    delivery = backend.take(server)
    delivery.keep_alive()
    delivery.ack()
    delivery.give_back()
    delivery.refuse()
    delivery.ack()
    assert backend.take(server).body == message("y")
    assert backend.nothing(server)


def test_a_rested_queue_keeps_nothing_from_others(backend: Backend) -> None:
    first, second = backend.open(), backend.open()
    assert backend.nothing(first)
    first.rest(backend.queue)
    backend.publish(backend.queue, message("x"))
    assert backend.take(second).body == message("x")
    first.rest(backend.queue)
    first.rest("never asked")


def test_closing_gives_back_what_is_held(backend: Backend) -> None:
    first = backend.open()
    backend.publish(backend.queue, message("x"))
    held = backend.take(first)
    first.close()
    first.close()
    held.ack()
    assert backend.take(backend.open()).body == message("x")


TAKER = """
import sys, time
from pathlib import Path
from runner.loop import Loop
from runner.queues import matcher
kind, where, queue = sys.argv[1:]
loop = Loop()
if kind == "files":
    from runner.queues.files import Directory
    server = Directory(Path(where), matcher(".", ""))
elif kind == "sqs":
    from runner.queues.sqs import SQS, Options
    from runner.queues.sqs_held import Timing
    server = SQS(loop, Options(region="us-west-2", endpoint=where), matcher(".", ""), timing=Timing(visibility=8.0))
else:
    from runner.queues.rabbitmq import Address, RabbitMQ
    server = RabbitMQ(loop, Address(where), matcher(".", ""))
held = None
while not held:
    held = server.take(queue)
    loop.run_once(0.05)
print("held", flush=True)
time.sleep(600)
"""


def test_a_message_whose_taker_is_killed_is_back(backend: Backend) -> None:
    backend.publish(backend.queue, message("x"))
    taker = subprocess.Popen(
        [sys.executable, "-c", TAKER, *backend.spec, backend.queue],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    with taker:
        assert taker.stdout is not None
        assert taker.stdout.readline() == b"held\n"
        server = backend.open()
        assert backend.nothing(server)
        taker.kill()
    assert backend.take(server).body == message("x")
