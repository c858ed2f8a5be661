"""What is special about RabbitMQ, on a real one."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

from runner.errors import ConfigError, Unavailable
from runner.loop import Loop
from runner.queues import discovery, matcher
from runner.queues.amqp import parameters_of, publish
from runner.queues.management import Management
from runner.queues.rabbitmq import Address, RabbitDelivery, RabbitMQ
from tests.loops import served
from tests.servers.http import Served, serving
from tests.servers.rabbitmq import PASSWORD, USER, Broker
from tests.servers.tcp import TcpProxy, proxied

SECRET = "hunter2-Secret"


class Bench:
    """A loop, and servers in it."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.servers: list[RabbitMQ] = []

    def open(self, url: str, management_url: str = "", **more: Any) -> RabbitMQ:
        address = Address(url, management_url, **more)
        self.servers.append(RabbitMQ(self.loop, address, matcher("^rmq_", "^rmq_not")))
        return self.servers[-1]

    def until(self, true: Callable[[], Any], seconds: float = 30.0) -> Any:
        """Serve the loop until something is true, and return it."""
        found = served(self.loop, true, seconds=seconds)
        assert found, "it did not happen"
        return found

    def take(self, server: RabbitMQ, queue: str, seconds: float = 30.0) -> RabbitDelivery:
        delivery = self.until(lambda: server.take(queue), seconds)
        assert isinstance(delivery, RabbitDelivery)
        return delivery

    def serve(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.loop.run_once(0.25)

    def close(self) -> None:
        for server in self.servers:
            server.close()
        self.loop.close()


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.close()


@pytest.fixture
def server(bench: Bench, rabbitmq: Broker) -> RabbitMQ:
    return bench.open(rabbitmq.url, rabbitmq.management_url)


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port that refuses connections for as long as the test runs."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


# Finding queues


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look for queues all the time."""
    monkeypatch.setattr(discovery, "_PACE", 0.5)


def test_new_queues_are_found_and_deleted_ones_forgotten(bench: Bench, server: RabbitMQ, rabbitmq: Broker) -> None:
    queue = rabbitmq.declare("rmq_found")
    for unwanted in ("other", "rmq_not_me", "rmq_found_response"):
        rabbitmq.declare(unwanted)
    bench.until(lambda: queue in server.queues())
    assert set(server.queues()) == {queue}
    rabbitmq.delete(queue)
    bench.until(lambda: not server.queues())


def test_a_missing_exchange_means_no_queues(bench: Bench, rabbitmq: Broker, caplog: pytest.LogCaptureFixture) -> None:
    server = bench.open(rabbitmq.url, rabbitmq.management_url)
    bench.serve(2)
    assert not server.queues()
    told = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert all("consumer_timeout" in each for each in told)


def test_a_silent_management_api_is_told_once(
    bench: Bench, rabbitmq: Broker, closed_port: int, caplog: pytest.LogCaptureFixture
) -> None:
    server = bench.open(rabbitmq.url, f"http://{USER}:{SECRET}@127.0.0.1:{closed_port}")
    bench.until(lambda: next(iter(server.refreshed())).failed > 1)
    told = [record.getMessage() for record in caplog.records if "management" in record.getMessage()]
    assert len(told) == 1
    assert f"http://127.0.0.1:{closed_port}" in told[0]
    assert "rabbitmq_management" in told[0]
    (search,) = server.refreshed()
    assert (search.succeeded, search.trouble) == (0, told[0])
    assert SECRET not in caplog.text
    queue = rabbitmq.declare()
    rabbitmq.publish(queue, b"{}")
    assert bench.take(server, queue).body == b"{}", "a queue that is known otherwise is still served"


def test_a_user_without_rights_at_the_management_api_is_told_so(
    bench: Bench, rabbitmq: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    rabbitmq.api("PUT", "users/plain", json={"password": SECRET, "tags": ""}).raise_for_status()
    everything = {"configure": "", "write": "", "read": ".*"}
    rabbitmq.api("PUT", "permissions/%2F/plain", json=everything).raise_for_status()
    url = rabbitmq.url.replace(f"{USER}:{PASSWORD}", f"plain:{SECRET}")
    bench.open(url, rabbitmq.management_url)
    bench.until(lambda: "refuses user 'plain': give that user the tag management" in caplog.text)
    assert SECRET not in caplog.text


@pytest.mark.parametrize(
    "answer",
    [
        Served(b"default backend - 404", status=404),
        Served(b"{}", status=404),
        Served(b"{}"),
        Served(b"[[]]"),
        Served(b"[" * 100_000),
        Served(b"<html>", status=502),
    ],
    ids=lambda answer: f"{answer.status} {answer.body[:9]!r}",
)
def test_what_is_no_list_of_queues_is_not_taken_for_an_empty_one(answer: Served) -> None:
    """Experiments whose queues are gone are stopped."""
    with serving() as server:
        server.objects["/api/exchanges/%2F/StudioML.topic/bindings/source"] = answer
        management = Management(f"http://{server.host}", parameters_of("amqp://guest:guest@127.0.0.1/%2F"))
        with pytest.raises(Unavailable, match="cannot be listed"):
            management.bound_queues()


def test_what_says_nothing_of_a_queue_is_not_taken_for_its_properties() -> None:
    with serving() as server:
        server.objects["/api/queues/%2F/rmq_a?disable_stats=true&enable_queue_totals=true"] = Served(b'["rmq_a"]')
        management = Management(f"http://{server.host}", parameters_of("amqp://guest:guest@127.0.0.1/%2F"))
        with pytest.raises(Unavailable, match="cannot be listed"):
            management.window("rmq_a")


# Taking


def test_no_message_is_pushed_that_was_not_asked_for(bench: Bench, server: RabbitMQ, rabbitmq: Broker) -> None:
    queue = rabbitmq.declare()
    assert server.take(queue) is None
    for body in (b"1", b"2", b"3"):
        rabbitmq.publish(queue, body)
    first = bench.take(server, queue)
    bench.serve(0.5)
    assert rabbitmq.depth(queue) == 2
    first.ack()
    bench.serve(0.5)
    assert rabbitmq.depth(queue) == 2, "settling one message must not bring the next"
    assert bench.take(server, queue).body == b"2"


def test_twenty_messages_of_one_queue_are_held_at_once(bench: Bench, server: RabbitMQ, rabbitmq: Broker) -> None:
    queue = rabbitmq.declare()
    bodies = [str(number).encode() for number in range(20)]
    for body in bodies:
        rabbitmq.publish(queue, body)
    held = [bench.take(server, queue) for _ in bodies]
    assert [delivery.body for delivery in held] == bodies
    for delivery in reversed(held):
        delivery.ack()
    assert not any(delivery.lost for delivery in held)
    bench.serve(0.2)
    server.close()
    bench.until(lambda: rabbitmq.depth(queue) == 0)


def test_resting_gives_back_what_was_pushed(bench: Bench, server: RabbitMQ, rabbitmq: Broker) -> None:
    queue = rabbitmq.declare()
    rabbitmq.publish(queue, b"{}")
    bench.take(server, queue).ack()
    assert server.take(queue) is None
    rabbitmq.publish(queue, b"{}")
    bench.until(lambda: rabbitmq.depth(queue) == 0)
    server.rest(queue)
    bench.until(lambda: rabbitmq.depth(queue) == 1)
    assert bench.take(server, queue).body == b"{}"


def test_a_message_on_an_idle_queue_comes_at_once(bench: Bench, server: RabbitMQ, rabbitmq: Broker) -> None:
    queue = rabbitmq.declare()
    rabbitmq.publish(queue, b"{}")
    bench.take(server, queue).ack()
    took = []
    with rabbitmq.connect() as connection:
        channel = connection.channel()
        for _ in range(10):
            assert server.take(queue) is None
            bench.serve(0.1)
            begun = time.monotonic()
            channel.basic_publish("", queue, b"{}")
            while not (delivery := server.take(queue)):
                bench.loop.run_once(10)
            took.append(time.monotonic() - begun)
            delivery.ack()
    print(f"publish to take: best {min(took) * 1000:.1f} ms, worst {max(took) * 1000:.1f} ms")
    assert min(took) < 5


def test_quorum_queues_say_how_often_a_message_came_before(bench: Bench, server: RabbitMQ, rabbitmq: Broker) -> None:
    queue = rabbitmq.declare(durable=True, arguments={"x-queue-type": "quorum"})
    rabbitmq.publish(queue, b"{}")
    first = bench.take(server, queue)
    assert not (first.redeliveries or first.redelivered)
    first.give_back()
    second = bench.take(server, queue)
    assert (second.redeliveries, second.redelivered) == (1, True)
    second.ack()


# What goes wrong


def test_a_deleted_queue_takes_nothing_from_another(bench: Bench, rabbitmq: Broker) -> None:
    kept, doomed = rabbitmq.declare(), rabbitmq.declare()
    server = bench.open(rabbitmq.url, rabbitmq.management_url)
    for queue in (kept, doomed):
        rabbitmq.publish(queue, b"{}")
    held, orphan = bench.take(server, kept), bench.take(server, doomed)
    server.take(doomed)
    bench.until(lambda: {kept, doomed} <= set(server.queues()))
    rabbitmq.delete(doomed)
    bench.until(lambda: doomed not in server.queues())
    for _ in range(3):  # of a queue that is not there
        server.take(doomed)
        bench.serve(0.2)
    orphan.ack()
    assert not held.lost
    held.ack()
    bench.serve(0.2)
    server.close()
    bench.until(lambda: rabbitmq.depth(kept) == 0)


def test_a_broker_with_too_few_channels_is_told_and_goes_on(
    bench: Bench, rabbitmq: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = rabbitmq.declare(), rabbitmq.declare()
    for queue in (first, second):
        rabbitmq.publish(queue, b"{}")
    server = bench.open(f"{rabbitmq.url}?channel_max=1", rabbitmq.management_url)
    held = bench.take(server, first)
    for _ in range(5):
        assert server.take(second) is None
    assert caplog.text.count(f"queue {second} has to wait: raise its channel_max") == 1
    held.ack()
    bench.take(server, second).ack()


def test_a_queue_that_is_made_again_is_served_again(bench: Bench, rabbitmq: Broker) -> None:
    queue = rabbitmq.declare()
    server = bench.open(rabbitmq.url, rabbitmq.management_url)
    rabbitmq.publish(queue, b"{}")
    bench.until(lambda: queue in server.queues())
    bench.take(server, queue).ack()
    assert server.take(queue) is None
    bench.serve(0.2)
    rabbitmq.delete(queue)
    bench.until(lambda: queue not in server.queues())
    rabbitmq.declare(queue)
    rabbitmq.publish(queue, b"{}")
    bench.until(lambda: queue in server.queues())
    assert bench.take(server, queue).body == b"{}"


def test_after_a_restart_of_the_broker_everything_goes_on(
    bench: Bench, server: RabbitMQ, rabbitmq: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "runner")
    queue = rabbitmq.declare(durable=True)
    rabbitmq.publish(queue, b"{}")
    held = bench.take(server, queue)
    rabbitmq.stop()
    bench.until(lambda: held.lost)
    bench.until(lambda: "cannot be reached" in next(iter(server.refreshed())).trouble)
    rabbitmq.start()
    again = bench.take(server, queue, 60)
    held.ack()
    assert again.body == held.body
    assert not again.lost
    again.ack()
    bench.until(lambda: not next(iter(server.refreshed())).trouble)
    assert "cannot be reached: Connection refused; trying again" in caplog.text
    assert caplog.text.count("connected to RabbitMQ at 127.0.0.1") == 2
    assert PASSWORD not in caplog.text


def test_a_killed_broker_is_noticed(bench: Bench, server: RabbitMQ, rabbitmq: Broker) -> None:
    queue = rabbitmq.declare(durable=True)
    rabbitmq.publish(queue, b"{}")
    held = bench.take(server, queue)
    rabbitmq.kill()
    try:
        bench.until(lambda: held.lost)
        assert server.take(queue) is None
    finally:
        rabbitmq.start()
    assert bench.take(server, queue, 60).body == b"{}"


def test_heartbeats_are_sent_while_the_loop_is_served(bench: Bench, rabbitmq: Broker) -> None:
    server = bench.open(f"{rabbitmq.url}?heartbeat=2", rabbitmq.management_url)
    queue = rabbitmq.declare()
    rabbitmq.publish(queue, b"{}")
    held = bench.take(server, queue)
    bench.serve(8)  # a silent client is cut off after at most 4 s
    assert not held.lost
    held.ack()


@pytest.fixture
def way(rabbitmq: Broker) -> Iterator[TcpProxy]:
    """A network between this machine and the broker's."""
    with proxied(rabbitmq.amqp_port) as proxy:
        yield proxy


def over(way: TcpProxy, broker: Broker, *, heartbeat: int = 60) -> str:
    return broker.url.replace(str(broker.amqp_port), str(way.port)) + f"?heartbeat={heartbeat}"


def test_a_reset_connection_loses_no_message(bench: Bench, rabbitmq: Broker, way: TcpProxy) -> None:
    queue = rabbitmq.declare()
    server = bench.open(over(way, rabbitmq), rabbitmq.management_url)
    for body in (b"1", b"2"):
        rabbitmq.publish(queue, body)
    held = bench.take(server, queue)
    assert way.reset()
    bench.until(lambda: held.lost)
    again = [bench.take(server, queue) for _ in range(2)]
    assert sorted(each.body for each in again) == [b"1", b"2"]
    for each in again:
        each.ack()
    bench.until(lambda: rabbitmq.depth(queue) == 0)


def test_a_black_hole_is_noticed_by_its_silence(bench: Bench, rabbitmq: Broker, way: TcpProxy) -> None:
    queue = rabbitmq.declare()
    server = bench.open(over(way, rabbitmq, heartbeat=2), rabbitmq.management_url)
    rabbitmq.publish(queue, b"1")
    held = bench.take(server, queue)
    way.swallow()
    bench.until(lambda: held.lost)
    assert server.take(queue) is None
    way.heal()
    again = bench.take(server, queue)
    assert again.body == b"1"
    again.ack()
    bench.until(lambda: rabbitmq.depth(queue) == 0)


def test_a_slow_way_is_only_slow(bench: Bench, rabbitmq: Broker, way: TcpProxy) -> None:
    queue = rabbitmq.declare()
    way.delay = 0.2
    server = bench.open(over(way, rabbitmq), rabbitmq.management_url)
    for number in range(3):
        rabbitmq.publish(queue, b"%d" % number)
    held = [bench.take(server, queue) for _ in range(3)]
    assert [each.body for each in held] == [b"0", b"1", b"2"]
    for each in held:
        each.ack()
    bench.until(lambda: rabbitmq.depth(queue) == 0)


def test_a_queue_for_reports_is_known_before_any_work_is_taken(
    bench: Bench, rabbitmq: Broker, way: TcpProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(discovery, "_PACE", 60.0)
    queue = rabbitmq.declare()
    rabbitmq.declare(f"{queue}_response")
    rabbitmq.publish(queue, b"{}")
    way.swallow()
    server = bench.open(over(way, rabbitmq), rabbitmq.management_url)
    bench.until(lambda: queue in server.queues())  # the management API answers before there is a connection
    way.heal()
    assert bench.take(server, queue)
    assert f"{queue}_response" in server.others()


def test_a_broker_that_stands_still_holds_up_nothing(bench: Bench, rabbitmq: Broker) -> None:
    queue = rabbitmq.declare()
    server = bench.open(rabbitmq.url, rabbitmq.management_url)
    rabbitmq.publish(queue, b"1")
    held = bench.take(server, queue)
    rabbitmq.pause()
    try:
        began = time.monotonic()
        for _ in range(20):
            server.take(queue)
            server.publish(queue, b"report")
            server.rest(queue)
            bench.loop.run_once(0)
        assert time.monotonic() - began < 10, "it stands still for ever"
    finally:
        rabbitmq.resume()
    held.ack()
    bench.until(lambda: rabbitmq.depth(queue) == 0 or server.take(queue))


# Publishing from the loop, and what else there is


def test_reports_that_were_not_confirmed_are_sent_again(bench: Bench, rabbitmq: Broker, way: TcpProxy) -> None:
    queue = rabbitmq.declare("rmq_told_response")
    server = bench.open(over(way, rabbitmq), rabbitmq.management_url)
    bench.until(lambda: queue in server.others())
    bench.until(lambda: server.publish(queue, b"0"))
    way.delay = 1.0
    for number in range(1, 50):
        assert server.publish(queue, b"%d" % number)
    bench.serve(0.5)
    way.reset()
    way.delay = 0.0
    bench.until(lambda: rabbitmq.depth(queue) >= 50)
    bench.until(lambda: not server._publisher.busy)
    wanted = {"count": 200, "ackmode": "ack_requeue_false", "encoding": "auto"}
    got = [int(each["payload"]) for each in rabbitmq.api("POST", f"queues/%2f/{queue}/get", json=wanted).json()]
    assert sorted(set(got)) == list(range(50))


def test_a_broker_that_takes_no_reports_still_gives_work(bench: Bench, rabbitmq: Broker) -> None:
    """It has no memory left, perhaps for reports that nobody reads."""
    queue, response = rabbitmq.declare("rmq_work"), rabbitmq.declare("rmq_work_response")
    server = bench.open(rabbitmq.url, rabbitmq.management_url)
    rabbitmq.publish(queue, b"1")
    rabbitmq.publish(queue, b"2")
    bench.until(lambda: response in server.others())
    bench.until(lambda: server.publish(response, b"before"))
    bench.until(lambda: rabbitmq.depth(response) == 1)
    rabbitmq.alarm(on=True)
    try:
        assert server.publish(response, b"during")
        bench.serve(1)
        bench.take(server, queue).ack()
        bench.take(server, queue).ack()
        server.take(queue)
        bench.until(lambda: rabbitmq.api("GET", f"queues/%2F/{queue}").json().get("messages") == 0)
        assert rabbitmq.depth(response) == 1
    finally:
        rabbitmq.alarm(on=False)
    bench.until(lambda: rabbitmq.depth(response) == 2)


def test_a_queue_that_vanished_with_its_broker_is_not_taken_for_a_deleted_one(bench: Bench, rabbitmq: Broker) -> None:
    lost, deleted = rabbitmq.declare(), rabbitmq.declare("rmq_kept", durable=True)
    server = bench.open(rabbitmq.url, rabbitmq.management_url)
    bench.until(lambda: {lost, deleted} <= server._seen)  # found while connected, which it may not be yet
    rabbitmq.restart()  # which forgets what is not durable
    bench.until(lambda: set(server.queues()) == {deleted} == server._seen, 60)
    assert not server.deleted(lost)
    rabbitmq.delete(deleted)
    bench.until(lambda: server.deleted(deleted))


def test_a_wrong_password_is_told_without_it_and_tried_again(
    bench: Bench, rabbitmq: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    rabbitmq.api("PUT", "users/late", json={"password": "other", "tags": "management"}).raise_for_status()
    rights = {"configure": ".*", "write": ".*", "read": ".*"}
    rabbitmq.api("PUT", "permissions/%2F/late", json=rights).raise_for_status()
    server = bench.open(rabbitmq.url.replace(f"{USER}:{PASSWORD}", f"late:{SECRET}"), rabbitmq.management_url)
    bench.until(lambda: "refuses the name or password of user 'late'" in caplog.text)
    bench.serve(3)
    assert caplog.text.count("refuses the name or password") == 1
    assert SECRET not in caplog.text
    rabbitmq.api("PUT", "users/late", json={"password": SECRET, "tags": "management"}).raise_for_status()
    queue = rabbitmq.declare()
    rabbitmq.publish(queue, b"{}")
    assert bench.take(server, queue).body == b"{}"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda url: url + "nowhere", "into virtual host 'nowhere'"),
        (lambda url: url.replace("127.0.0.1", "broker.invalid"), "broker.invalid:"),
        (lambda url: url.replace("amqp://", "amqps://"), "cannot be reached"),
    ],
)
def test_each_failure_to_connect_is_a_sentence(
    bench: Bench,
    rabbitmq: Broker,
    caplog: pytest.LogCaptureFixture,
    change: Callable[[str], str],
    words: str,
) -> None:
    bench.open(change(rabbitmq.url), rabbitmq.management_url)
    bench.until(lambda: "trying again" in caplog.text)
    (told,) = [record.getMessage() for record in caplog.records if "trying again" in record.getMessage()]
    assert words in told
    assert PASSWORD not in caplog.text


@pytest.mark.parametrize(
    "url",
    [
        f"amqp://user:{SECRET}/x@host:port/",
        f"http://user:{SECRET}@host/",
        f"amqp://user:{SECRET}@host/?heartbeat=often",
        f"amqp://user:{SECRET}@host/?no_such_parameter=1",
        SECRET,
    ],
)
def test_a_url_that_is_none_is_refused_without_being_repeated(bench: Bench, url: str) -> None:
    with pytest.raises(ConfigError, match=r"--amqp-url cannot be understood: amqp\[s\]://") as caught:
        bench.open(url, "")
    assert SECRET not in str(caught.value)
    with pytest.raises(ConfigError, match="--amqp-mgt-url"):
        bench.open("amqp://a:b@127.0.0.1:1/", f"ftp://{SECRET}@host")


def test_variables_in_the_urls_are_expanded(bench: Bench, rabbitmq: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BROKER_PASSWORD", PASSWORD)
    monkeypatch.setenv("BROKER_API", rabbitmq.management_url)
    queue = rabbitmq.declare()
    server = bench.open(rabbitmq.url.replace(PASSWORD, "${BROKER_PASSWORD}"), "$BROKER_API")
    bench.until(lambda: queue in server.queues())
    rabbitmq.publish(queue, b"{}")
    bench.take(server, queue).ack()


def test_closing_is_quick_whatever_the_state_of_the_connection(bench: Bench, rabbitmq: Broker) -> None:
    connected, connecting = (bench.open(rabbitmq.url, rabbitmq.management_url) for _ in range(2))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        stuck = bench.open(f"amqp://a:b@127.0.0.1:{silent.getsockname()[1]}/", rabbitmq.management_url)
        bench.serve(0.5)
        connecting = bench.open(rabbitmq.url, rabbitmq.management_url)
        for server in (connected, connecting, stuck):
            begun = time.monotonic()
            server.close()
            server.close()
            assert time.monotonic() - begun < 10
            assert server.take("rmq_x") is None


# The client's side


def test_publishing_makes_what_a_client_makes(rabbitmq: Broker) -> None:
    publish(rabbitmq.url, "rmq_new", b'{"a": 1}')
    publish(rabbitmq.url, "rmq_new", b'{"a": 2}')
    assert rabbitmq.depth("rmq_new") == 2
    made = rabbitmq.api("GET", "queues/%2F/rmq_new").json()
    assert (made["durable"], made["auto_delete"], made["arguments"], made["type"]) == (False, False, {}, "classic")
    exchange = rabbitmq.api("GET", "exchanges/%2F/StudioML.topic").json()
    assert (exchange["type"], exchange["durable"], exchange["auto_delete"]) == ("topic", True, True)
    wanted = {"count": 1, "ackmode": "ack_requeue_false", "encoding": "auto"}
    (message,) = rabbitmq.api("POST", "queues/%2F/rmq_new/get", json=wanted).json()
    assert (message["exchange"], message["routing_key"]) == ("StudioML.topic", "StudioML.rmq_new")
    assert message["payload"] == '{"a": 1}'
    assert message["properties"]["content_type"] == "application/json"
    assert message["properties"]["delivery_mode"] == 2


def test_publishing_leaves_a_queue_with_other_properties_as_it_is(rabbitmq: Broker) -> None:
    queue = rabbitmq.declare(durable=True, arguments={"x-max-priority": 5})
    publish(rabbitmq.url, queue, b"{}")
    assert rabbitmq.depth(queue) == 1


def test_publishing_fails_with_one_sentence(rabbitmq: Broker, closed_port: int) -> None:
    wrong = rabbitmq.url.replace(PASSWORD, SECRET)
    with pytest.raises(ConfigError, match="refuses the name or password of user 'studio'") as caught:
        publish(wrong, "rmq_x", b"{}")
    assert SECRET not in str(caught.value)
    with pytest.raises(Unavailable, match=f"RabbitMQ at 127.0.0.1:{closed_port} cannot be reached: Connection refused"):
        publish(f"amqp://a:b@127.0.0.1:{closed_port}/", "rmq_x", b"{}")
    with rabbitmq.connect() as connection:
        connection.channel().queue_declare("rmq_mine", exclusive=True)
        with pytest.raises(ConfigError, match="does not allow that: RESOURCE_LOCKED"):
            publish(rabbitmq.url, "rmq_mine", b"{}")


def test_urls_of_the_test_broker_hold_what_must_not_be_logged(rabbitmq: Broker) -> None:
    """Otherwise the tests for leaks could not fail."""
    assert urlsplit(rabbitmq.url).password == PASSWORD
