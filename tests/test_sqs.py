"""SQS, beyond what every queue server does: credentials that come and go, messages hidden for longer, faults."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import datetime, timezone
from pathlib import Path

import pytest

from runner.errors import ConfigError
from runner.loop import Loop
from runner.queues import matcher, sqs_account, sqs_search, sqs_sending
from runner.queues.base import Delivery
from runner.queues.sqs import SQS
from runner.queues.sqs_account import Options
from runner.queues.sqs_held import TIMING, Timing
from tests.loops import served
from tests.servers.faulty import ALWAYS, FaultyProxy, faulty
from tests.servers.sqs import KEY, REGION, SECRET, SQSServer

QUEUE = "sqs_work"
CREDENTIALS = f"[default]\naws_access_key_id = {KEY}\naws_secret_access_key = {SECRET}\n"
CONFIG = f"[default]\nregion = {REGION}\noutput = json\n"


class Bench:
    """A loop, and servers in it."""

    def __init__(self, stack: ExitStack) -> None:
        self.loop, self._stack = Loop(), stack
        stack.callback(self.loop.close)

    def open(self, options: Options, *, names: tuple[str, ...] = (), timing: Timing = TIMING) -> SQS:
        server = SQS(self.loop, options, matcher("^sqs_", ""), names, timing)
        self._stack.callback(server.close)
        return server

    def soon(self, look: Callable[[], object], seconds: float = 20.0) -> object:
        return served(self.loop, look, seconds=seconds)

    def take(self, server: SQS, queue: str = QUEUE) -> Delivery:
        found = self.soon(lambda: server.take(queue))
        assert found, "no message came"
        return found  # type: ignore[return-value]

    def idle(self, seconds: float, *held: Delivery) -> None:
        """Let time pass, as the supervisor does."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for delivery in held:
                delivery.keep_alive()
            self.loop.run_once(0.05)


@pytest.fixture
def bench() -> Iterator[Bench]:
    with ExitStack() as stack:
        yield Bench(stack)


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Credentials in the environment."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)


@pytest.fixture
def here(sqs: SQSServer, keys: None) -> Options:
    """The account of the environment."""
    return Options(region=REGION, endpoint=sqs.endpoint)


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look for queues all the time."""
    monkeypatch.setattr(sqs_search, "_PACE", 0.1)
    monkeypatch.setattr(sqs_search, "_SOONEST", 0.2)
    monkeypatch.setattr(sqs_search, "_LATEST", 0.2)


def credentials(root: Path, name: str = "team", **files: str) -> Path:
    directory = root / name
    directory.mkdir()
    for file, text in (files or {"credentials": CREDENTIALS, "config": CONFIG}).items():
        (directory / file).write_text(text)
    return directory


# Credentials


@pytest.mark.usefixtures("hurried")
def test_directories_of_credentials_come_and_go(sqs: SQSServer, bench: Bench, tmp_path: Path) -> None:
    sqs.create(QUEUE)
    server = bench.open(Options(certs=str(tmp_path), endpoint=sqs.endpoint))
    bench.idle(0.5)
    assert not server.queues()
    directory = credentials(tmp_path, anything=CREDENTIALS, other=CONFIG)  # the names do not matter
    assert bench.soon(lambda: QUEUE in server.queues())
    sqs.publish(QUEUE, b"1")
    held = bench.take(server)
    shutil.rmtree(directory)
    assert bench.soon(lambda: not server.queues())
    assert not server.deleted(QUEUE)
    held.ack()  # what is held can still be settled
    assert bench.soon(lambda: sqs.depth(QUEUE) == 0)


@pytest.mark.usefixtures("hurried")
def test_credentials_that_are_exchanged_are_used_from_then_on(moto: SQSServer, bench: Bench, tmp_path: Path) -> None:
    moto.create(QUEUE)
    moto.publish(QUEUE, b"x")
    directory = credentials(tmp_path, credentials=CREDENTIALS.replace(KEY, "old"), config=CONFIG)
    with faulty(f"127.0.0.1:{moto.port}") as proxy:
        server = bench.open(Options(certs=str(tmp_path), endpoint=f"http://{proxy.host}"))
        held = bench.take(server)
        assert all("Credential=old/" in headers["Authorization"] for headers in proxy.headers)
        (directory / "credentials").write_text(CREDENTIALS)
        assert bench.soon(lambda: f"Credential={KEY}/" in proxy.headers[-1]["Authorization"])
        server.rest(QUEUE)
        held.ack()  # with the new ones
        assert bench.soon(lambda: moto.depth(QUEUE) == 0)
    deletion = next(headers for headers in proxy.headers if "DeleteMessage" in headers["X-Amz-Target"])
    assert f"Credential={KEY}/" in deletion["Authorization"]
    moto.clear()


@pytest.mark.usefixtures("hurried")
def test_credentials_that_are_refused_are_told_once_until_they_work(
    sqs: SQSServer, bench: Bench, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sqs.create(QUEUE)
    credentials(tmp_path)
    refusal = {"__type": "com.amazon.coral.service#InvalidClientTokenId", "message": "The token is invalid."}
    with faulty(f"127.0.0.1:{sqs.port}") as proxy:
        proxy.answer(403, json.dumps(refusal).encode(), times=ALWAYS)
        server = bench.open(Options(certs=str(tmp_path), endpoint=f"http://{proxy.host}"))
        assert bench.soon(lambda: len(proxy.seen) > 3)
        assert caplog.text.count("cannot be found: SQS refuses") == 1
        assert "InvalidClientTokenId" in caplog.text
        assert SECRET not in caplog.text
        proxy.heal()
        (search,) = server.refreshed()
        assert (search.succeeded, search.failed > 1) == (0, True)
        assert "SQS refuses" in search.trouble
        assert bench.soon(lambda: QUEUE in server.queues())
        assert bench.soon(lambda: not next(iter(server.refreshed())).trouble)


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({"config": CONFIG}, "has no file with AWS credentials"),
        ({"credentials": CREDENTIALS}, "names a region"),
        ({"credentials": "\0 no ini file", "config": CONFIG}, "has no file with AWS credentials"),
    ],
)
def test_a_directory_that_is_of_no_use_is_told_and_does_not_use_the_environments_keys(
    files: dict[str, str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "other")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "other")
    directory = credentials(tmp_path, **files)
    (source,) = sqs_account.sources(Options(certs=str(tmp_path)))
    with pytest.raises(ConfigError, match=f"{directory} .*{told}"):
        sqs_account.Account(source, Options(certs=str(tmp_path)))


def test_the_default_profile_may_be_called_one_as_the_others_are(tmp_path: Path) -> None:
    credentials(tmp_path, credentials=CREDENTIALS, config=CONFIG.replace("[default]", "[profile default]"))
    (source,) = sqs_account.sources(Options(certs=str(tmp_path)))
    assert sqs_account.Account(source, Options(certs=str(tmp_path))).name == str(tmp_path / "team")


def test_hidden_files_of_mounted_secrets_are_not_read_twice(tmp_path: Path) -> None:
    directory = credentials(tmp_path)
    (directory / "..data").mkdir()
    (directory / "credentials").rename(directory / "..data" / "credentials")
    (directory / "credentials").symlink_to("..data/credentials")
    (tmp_path / "..data").mkdir()
    (source,) = sqs_account.sources(Options(certs=str(tmp_path)))
    assert source.files
    assert sorted(file.name for file in source.files) == ["config", "credentials"]


def test_without_any_credentials_it_is_said_what_to_do(
    moto: SQSServer, bench: Bench, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", "/nonexistent")
    bench.open(Options(region=REGION, endpoint=moto.endpoint))
    assert bench.soon(lambda: "set AWS_ACCESS_KEY_ID" in caplog.text)


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize("lifetime", [None, -60])
def test_a_program_that_gives_no_good_credentials_is_asked_again(
    lifetime: float | None, sqs: SQSServer, bench: Bench, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is not there, or what it gives is out of date, as it is by a clock that is wrong."""
    sqs.create(QUEUE)
    sqs.publish(QUEUE, b"x")
    program, given = tmp_path / "program", tmp_path / "given"
    certs = tmp_path / "certs"
    certs.mkdir()

    def give(seconds: float) -> None:
        until = datetime.fromtimestamp(time.time() + seconds, timezone.utc).isoformat()
        keys = {"Version": 1, "AccessKeyId": KEY, "SecretAccessKey": SECRET, "SessionToken": "x", "Expiration": until}
        given.write_text(json.dumps(keys))
        program.write_text(f"#!/bin/sh\ncat {given}\n")
        program.chmod(0o755)

    if lifetime is not None:
        give(lifetime)
    credentials(certs, credentials=f"[default]\ncredential_process = {program}\n", config=CONFIG)
    server = bench.open(Options(certs=str(certs), endpoint=sqs.endpoint))
    assert bench.soon(lambda: "SQS cannot be used" in caplog.text or "still expired" in caplog.text)
    give(3600)
    assert bench.take(server).body == b"x"


@pytest.mark.usefixtures("hurried", "keys")
def test_what_is_not_sqs_is_not_believed_and_not_asked_all_the_time(
    moto: SQSServer, bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    moto.create(QUEUE)
    with faulty(f"127.0.0.1:{moto.port}") as proxy:
        server = bench.open(Options(region=REGION, endpoint=f"http://{proxy.host}"))
        assert bench.soon(lambda: QUEUE in server.queues())
        proxy.answer(200, b"<html>Please log in to this network.</html>", times=ALWAYS)
        server.take(QUEUE)
        assert bench.soon(lambda: "is not SQS" in caplog.text)
        asked = len(operations(proxy))
        bench.idle(2.0)
        assert sum("ReceiveMessage" in each for each in operations(proxy)[asked:]) < 10
        assert QUEUE in server.queues()
        assert not server.deleted(QUEUE)
        proxy.heal()
        moto.publish(QUEUE, b"x")
        assert bench.take(server).body == b"x"
    moto.clear()


# Queues


@pytest.mark.usefixtures("keys")
def test_more_queues_than_one_page_are_all_found(moto: SQSServer, bench: Bench) -> None:
    for number in range(1003):
        moto.create(f"sqs_page_{number}")
    options = Options(region=REGION, endpoint=moto.endpoint)
    server = bench.open(options)
    assert bench.soon(lambda: len(server.queues()) == 1003)
    moto.clear()


@pytest.mark.usefixtures("hurried")
def test_a_queue_that_is_deleted_is_known_as_such(sqs: SQSServer, bench: Bench, here: Options) -> None:
    sqs.create(QUEUE)
    server = bench.open(here)
    assert bench.soon(lambda: QUEUE in server.queues())
    server.take(QUEUE)
    assert not server.deleted(QUEUE)
    sqs.client.delete_queue(QueueUrl=sqs.url(QUEUE))
    assert bench.soon(lambda: server.deleted(QUEUE))
    assert QUEUE not in server.queues()
    sqs.create(QUEUE)
    assert bench.soon(lambda: QUEUE in server.queues())
    assert not server.deleted(QUEUE)
    sqs.publish(QUEUE, b"again")
    assert bench.take(server).body == b"again"


def test_named_queues_are_found_without_listing(sqs: SQSServer, bench: Bench, here: Options) -> None:
    for name in (QUEUE, f"{QUEUE}_response", "sqs_other"):
        sqs.create(name)
    with faulty(f"127.0.0.1:{sqs.port}") as proxy:
        server = bench.open(Options(region=REGION, endpoint=f"http://{proxy.host}"), names=(QUEUE, "sqs_missing"))
        assert bench.soon(lambda: QUEUE in server.queues())
        assert list(server.queues()) == [QUEUE]
        assert list(server.others()) == [f"{QUEUE}_response"]
        assert not any("ListQueues" in asked for asked in operations(proxy))


def operations(proxy: FaultyProxy) -> list[str]:
    return [headers.get("X-Amz-Target", "") for headers in proxy.headers]


# Messages


def test_a_message_stays_hidden_for_as_long_as_it_is_kept_alive(sqs: SQSServer, bench: Bench, here: Options) -> None:
    sqs.create(QUEUE)
    sqs.publish(QUEUE, b"long")
    first, second = (bench.open(here, timing=Timing(visibility=4.0, poll=1)) for _ in range(2))
    held = bench.take(first)
    assert (held.redeliveries, held.redelivered) == (0, False)
    second.take(QUEUE)
    bench.idle(6.0, held)
    assert not held.lost
    assert second.take(QUEUE) is None
    bench.idle(4.5)  # as if the runner had hung
    assert held.lost
    again = bench.take(second)
    assert (again.body, again.redeliveries, again.redelivered) == (b"long", 1, True)
    again.ack()
    assert bench.soon(lambda: sqs.depth(QUEUE) == 0)


@pytest.mark.usefixtures("keys")
def test_a_message_that_was_held_for_as_long_as_is_allowed_is_lost(
    moto: SQSServer, bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    moto.create(QUEUE)
    moto.publish(QUEUE, b"days")
    server = bench.open(Options(region=REGION, endpoint=moto.endpoint), timing=Timing(4.0, ceiling=7.0, poll=1))
    held = bench.take(server)
    bench.idle(5.0, held)
    assert not held.lost
    assert bench.soon(lambda: held.keep_alive() or held.lost)
    assert caplog.text.count("for as long as it allows") == 1
    again = bench.take(server)  # the same runner: it is the one to adopt it
    assert again.body == b"days"
    again.ack()
    assert bench.soon(lambda: moto.depth(QUEUE) == 0)
    moto.clear()


def test_the_longest_hold_ends_where_sqs_ends_it() -> None:
    assert TIMING.ceiling == 12 * 3600
    assert TIMING.visibility == 30


def test_a_message_is_extended_although_some_calls_fail(sqs: SQSServer, bench: Bench, here: Options) -> None:
    sqs.create(QUEUE)
    sqs.publish(QUEUE, b"x")
    with faulty(f"127.0.0.1:{sqs.port}") as proxy:
        options = Options(region=REGION, endpoint=f"http://{proxy.host}")
        server = bench.open(options, timing=Timing(visibility=12.0, poll=1))
        held = bench.take(server)
        server.rest(QUEUE)
        proxy.answer(503)
        proxy.swallow()
        bench.idle(14.0, held)
        assert not held.lost
        held.ack()
        assert bench.soon(lambda: sqs.depth(QUEUE) == 0)


def test_an_account_that_does_not_work_costs_the_messages_of_no_other(
    moto: SQSServer, ministack: SQSServer, bench: Bench, tmp_path: Path
) -> None:
    broken, well = "sqs_broken", "sqs_well"
    ministack.create(broken)
    moto.create(well)
    for number in range(5):
        ministack.publish(broken, b"%d" % number)
    moto.publish(well, b"well")
    with faulty(f"127.0.0.1:{ministack.port}") as proxy:
        for name, endpoint in (("broken", f"http://{proxy.host}"), ("well", moto.endpoint)):
            config = f"{CONFIG}endpoint_url = {endpoint}\n"
            credentials(tmp_path, name, credentials=CREDENTIALS, config=config)
        server = bench.open(Options(certs=str(tmp_path)), timing=Timing(visibility=5.0, poll=1))
        held = [bench.take(server, broken) for _ in range(5)]
        server.rest(broken)
        proxy.answer(503, times=ALWAYS)
        for delivery in held:
            delivery.ack()  # which is tried for long
        other = bench.take(server, well)
        bench.idle(6.5, other)
        assert not other.lost
        proxy.heal()
    moto.clear()
    ministack.clear()


@pytest.mark.usefixtures("keys")
def test_a_message_is_kept_while_credentials_are_out_of_date(moto: SQSServer, bench: Bench) -> None:
    moto.create(QUEUE)
    moto.publish(QUEUE, b"x")
    expired = json.dumps({"__type": "com.amazon.coral.service#ExpiredTokenException", "message": "It has expired."})
    with faulty(f"127.0.0.1:{moto.port}") as proxy:
        options = Options(region=REGION, endpoint=f"http://{proxy.host}")
        server = bench.open(options, timing=Timing(visibility=8.0, poll=1))
        held = bench.take(server)
        server.rest(QUEUE)
        proxy.answer(403, expired.encode(), times=ALWAYS)
        bench.idle(5.0, held)
        proxy.heal()
        bench.idle(4.0, held)
        assert not held.lost
        proxy.answer(403, expired.encode(), times=ALWAYS)
        held.ack()
        proxy.heal()
        assert bench.soon(lambda: moto.depth(QUEUE) == 0)
    moto.clear()


def test_an_acknowledgement_survives_an_outage(sqs: SQSServer, bench: Bench, here: Options) -> None:
    sqs.create(QUEUE)
    sqs.publish(QUEUE, b"x")
    with faulty(f"127.0.0.1:{sqs.port}") as proxy:
        server = bench.open(Options(region=REGION, endpoint=f"http://{proxy.host}"))
        held = bench.take(server)
        server.rest(QUEUE)
        proxy.answer(500, times=ALWAYS)
        held.ack()
        bench.idle(2.0)
        proxy.heal()
        assert bench.soon(lambda: sqs.depth(QUEUE) == 0)


def test_fifo_queues_keep_the_order_of_a_group(sqs: SQSServer, bench: Bench, here: Options) -> None:
    queue = "sqs_order.fifo"
    sqs.create(queue)
    for number in range(3):
        sqs.publish(queue, b"%d" % number)
    server = bench.open(here)
    for number in range(3):
        held = bench.take(server, queue)
        assert held.body == b"%d" % number
        server.rest(queue)
        held.ack()
        assert bench.soon(lambda left=2 - number: sqs.depth(queue) == left)


def test_a_bad_message_of_a_fifo_queue_goes_to_its_dead_letters(sqs: SQSServer, bench: Bench, here: Options) -> None:
    sqs.create("dead.fifo")
    redrive = json.dumps({"deadLetterTargetArn": sqs.arn("dead.fifo"), "maxReceiveCount": "9"})
    sqs.create("sqs_bad.fifo", RedrivePolicy=redrive)
    sqs.publish("sqs_bad.fifo", b"bad")
    server = bench.open(here)
    bench.take(server, "sqs_bad.fifo").refuse()
    assert bench.soon(lambda: sqs.depth("sqs_bad.fifo") == 0)
    assert sqs.bodies("dead.fifo") == [b"bad"]


def test_what_cannot_be_moved_to_the_dead_letters_is_not_lost(
    sqs: SQSServer, bench: Bench, here: Options, caplog: pytest.LogCaptureFixture
) -> None:
    sqs.create("dead")
    sqs.create(QUEUE, RedrivePolicy=json.dumps({"deadLetterTargetArn": sqs.arn("dead"), "maxReceiveCount": "9"}))
    sqs.publish(QUEUE, b"bad")
    server = bench.open(here, timing=Timing(visibility=2.0, poll=1))
    held = bench.take(server)
    server.rest(QUEUE)
    denied = json.dumps({"__type": "com.amazonaws.sqs#AccessDeniedException", "message": "no"}).encode()
    real = sqs_account.Account.call

    def call(self: sqs_account.Account, operation: str, **more: object) -> object:
        if operation == "send_message":
            raise sqs_account.Refused("AccessDenied", denied.decode())
        return real(self, operation, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sqs_account.Account, "call", call)
        held.refuse()
        assert bench.soon(lambda: "cannot be moved to the dead-letter queue" in caplog.text)
    assert not bench.soon(lambda: server.take(QUEUE), 0.5), "it would be refused again and again"
    assert bench.take(server).body == b"bad"


# Reports


def test_reports_arrive_in_batches_and_in_order(sqs: SQSServer, bench: Bench, here: Options) -> None:
    queue = "sqs_work_response.fifo"
    sqs.create(queue)
    with faulty(f"127.0.0.1:{sqs.port}") as proxy:
        server = bench.open(Options(region=REGION, endpoint=f"http://{proxy.host}"))
        assert bench.soon(lambda: queue in server.others())
        proxy.answer(503, times=2)
        for number in range(25):
            assert server.publish(queue, b"%d" % number)
        assert bench.soon(lambda: sqs.depth(queue) == 25)
        assert sum("SendMessageBatch" in each for each in operations(proxy)) <= 3 + 2 + 1
    found: list[bytes] = []
    while more := sqs.bodies(queue):
        found += more
    assert found == [b"%d" % number for number in range(25)]


def test_a_report_that_cannot_be_sent_does_not_hold_up_the_next(sqs: SQSServer, bench: Bench, here: Options) -> None:
    for name in ("sqs_a_response", "sqs_b_response"):
        sqs.create(name)
    server = bench.open(here)
    assert bench.soon(lambda: len(list(server.others())) == 2)
    sqs.client.delete_queue(QueueUrl=sqs.url("sqs_a_response"))
    assert server.publish("sqs_a_response", b"lost")
    assert server.publish("sqs_b_response", b"here")
    assert bench.soon(lambda: sqs.depth("sqs_b_response") == 1)


# Faults


def test_a_server_that_does_not_answer_holds_up_nothing(sqs: SQSServer, bench: Bench, here: Options) -> None:
    sqs.create(QUEUE)
    sqs.create(f"{QUEUE}_response")
    sqs.publish(QUEUE, b"x")
    server = bench.open(here)
    held = bench.take(server)
    sqs.pause()
    try:
        began = time.monotonic()
        for number in range(300):
            server.take(QUEUE)
            server.publish(f"{QUEUE}_response", b"%d" % number)
            held.keep_alive()
        held.ack()
        server.rest(QUEUE)
        assert time.monotonic() - began < 10, "no call would end within 15 s"
        assert not server.publish(f"{QUEUE}_response", b"too much")
        began = time.monotonic()
        server.close()
        assert time.monotonic() - began < 14
    finally:
        sqs.resume()


def test_publishing_to_no_queue_is_a_mistake(sqs: SQSServer, here: Options) -> None:
    with pytest.raises(ConfigError, match="there is no SQS queue 'sqs_none'"):
        sqs_sending.publish(here, "sqs_none", b"x")
