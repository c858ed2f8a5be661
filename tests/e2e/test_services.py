"""Faults of real servers: each ends as protocol section 8 says, with one clear sentence."""

from __future__ import annotations

import io
import json
import tarfile
import uuid
from typing import Any

import pytest
import requests

from tests.e2e.harness import Runner, Workplace, archive, processes, until
from tests.servers.ceph import S3Server
from tests.servers.faulty import faulty
from tests.servers.rabbitmq import Broker


class Bucket:
    """Messages whose artifacts are in a bucket, and what is in it afterwards."""

    def __init__(self, s3: S3Server, place: Workplace) -> None:
        self.s3, self.place, self.name = s3, place, s3.bucket()

    def message(self, script: str, *, host: str = "", bucket: str = "", secret: str = "") -> dict[str, Any]:
        """Store a workspace of one script, and return the message; ``host``, ``bucket``, ``secret`` may be false."""
        message = self.place.message(script)
        self.s3.put(self.name, "blobstore/demo.tar", archive({"main.py": script.encode()}))
        keys = {"access_key": self.s3.access_key, "secret_access_key": secret or self.s3.secret_key}
        for artifact in message["experiment"]["artifacts"].values():
            place = f"{host or self.s3.host}/{bucket or self.name}"
            artifact.update(qualified=f"s3://{place}/{artifact['key']}", credentials={"aws": keys})
        return message

    def output(self) -> str:
        body = self.s3.call("GET", f"{self.name}/experiments/demo/output.tar").content
        with tarfile.open(fileobj=io.BytesIO(body)) as stored:
            member = stored.extractfile("output")
            assert member is not None
            return member.read().decode()


@pytest.fixture
def bucket(s3: S3Server, place: Workplace) -> Bucket:
    return Bucket(s3, place)


def start(place: Workplace, broker: Broker, *options: str) -> Runner:
    given = ("--amqp-url", broker.url, "--amqp-mgt-url", broker.management_url)
    return place.start(*given, *options, local=False)


def send(broker: Broker, message: dict[str, Any], **properties: Any) -> str:
    queue = broker.declare(f"rmq_{uuid.uuid4().hex[:8]}", **properties)
    broker.publish(queue, json.dumps(message).encode())
    return queue


def test_a_message_travels_from_rabbitmq_to_s3(place: Workplace, rabbitmq: Broker, bucket: Bucket) -> None:
    queue = send(rabbitmq, bucket.message("print('hello')"))
    runner = start(place, rabbitmq)
    runner.saw("acknowledged")
    assert "hello\n" in bucket.output()
    until(lambda: rabbitmq.depth(queue) == 0, "the queue is empty")
    assert runner.stop() == 0
    assert rabbitmq.depth(queue) == 0
    assert "testsecret" not in runner.log
    assert "broker-Secret" not in runner.log


def test_submit_publishes_to_rabbitmq_and_s3(place: Workplace, rabbitmq: Broker, s3: S3Server) -> None:
    (place.root / "code").mkdir()
    (place.root / "code" / "main.py").write_text("print('submitted')")
    start(place, rabbitmq)
    done = place.submit(
        *("--amqp-url", rabbitmq.url, "--queue", "rmq_submitted", "--store", f"s3://{s3.host}/{s3.bucket()}"),
        *("--wait", "--output", "results", "code", "main.py"),
        env={"AWS_ACCESS_KEY_ID": s3.access_key, "AWS_SECRET_ACCESS_KEY": s3.secret_key},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "submitted\n" in (place.root / "results/output/output").read_text()


def test_the_broker_restarts_in_the_middle_of_a_run(place: Workplace, broker: Broker, bucket: Bucket) -> None:
    """The experiment runs on, its message comes back while it does, is recognised, and acknowledged once."""
    go = place.root / "go"
    tries = place.root / "tries"
    script = f"open('{tries}', 'a').write('x')\nimport pathlib, time\n"
    script += f"while not pathlib.Path('{go}').exists(): time.sleep(0.05)\nprint('done')\n"
    queue = send(broker, bucket.message(script), durable=True)
    runner = start(place, broker, "--max-cores", "1")  # which is full then
    until(tries.exists, "the experiment runs")
    broker.restart()
    runner.saw("came again while it runs")
    go.touch()
    runner.saw("acknowledged")
    assert "done\n" in bucket.output()
    assert tries.read_text() == "x"
    assert runner.stop() == 0
    assert broker.depth(queue) == 0
    broker.delete(queue)


def test_an_experiment_that_ends_while_the_broker_is_away_is_not_run_again(
    place: Workplace, broker: Broker, bucket: Bucket
) -> None:
    go, tries = place.root / "go", place.root / "tries"
    script = f"open('{tries}', 'a').write('x')\nimport pathlib, time\n"
    script += f"while not pathlib.Path('{go}').exists(): time.sleep(0.05)\n"
    queue = send(broker, bucket.message(script), durable=True)
    runner = start(place, broker)
    until(tries.exists, "the experiment runs")
    broker.kill()
    go.touch()
    runner.saw("completed")
    broker.start()
    runner.saw("came again after it was over", 90)
    assert tries.read_text() == "x"
    assert runner.stop() == 0
    assert broker.depth(queue) == 0
    broker.delete(queue)


def test_a_runner_waits_for_a_broker_that_is_not_there_yet(place: Workplace, broker: Broker, bucket: Bucket) -> None:
    queue = send(broker, bucket.message("print('late')"), durable=True)
    broker.stop()
    runner = start(place, broker)
    line = runner.saw("trying again")
    assert "broker-Secret" not in line
    broker.start()
    runner.saw("acknowledged", 90)
    assert runner.stop() == 0
    broker.delete(queue)


def test_a_store_that_fails_for_a_while_is_waited_for(place: Workplace, rabbitmq: Broker, bucket: Bucket) -> None:
    with faulty(bucket.s3.host) as proxy:
        proxy.answer(503, times=3)
        proxy.answer(503, of="PUT", times=3)
        proxy.cut(100, of="blobstore")
        send(rabbitmq, bucket.message("print('patient')", host=proxy.host))
        start(place, rabbitmq).saw("acknowledged")
    assert "patient\n" in bucket.output()


def test_a_store_that_fails_for_too_long_gives_the_message_back(
    place: Workplace, rabbitmq: Broker, bucket: Bucket
) -> None:
    with faulty(bucket.s3.host) as proxy:
        proxy.answer(503, of="PUT", times=10_000)
        queue = send(rabbitmq, bucket.message("print('lost')", host=proxy.host))
        runner = start(place, rabbitmq, "--store-patience", "2s")
        said = runner.saw("could not be stored")
        assert "given back" in said
        assert "503" in said
        assert runner.stop() == 0
    assert rabbitmq.depth(queue) == 1


@pytest.mark.parametrize(
    ("wrong", "told"),
    [({"bucket": "no-such-bucket"}, "no-such-bucket"), ({"secret": "wrong" * 8}, "secret")],
    ids=["bucket", "secret"],
)
def test_a_bucket_or_key_that_is_wrong_fails_with_one_sentence(
    place: Workplace, rabbitmq: Broker, bucket: Bucket, wrong: dict[str, str], told: str
) -> None:
    send(rabbitmq, bucket.message("print('never')", **wrong))
    runner = start(place, rabbitmq, "--max-attempts", "2")
    line = runner.saw("not tried again")
    assert told in line
    assert "'workspace'" in line or "'_metadata'" in line
    assert runner.log.count("given back)") == 1
    assert "Traceback" not in runner.log
    assert "wrongwrong" not in runner.log


def test_a_record_in_the_clients_database_follows_the_experiment(
    place: Workplace, rabbitmq: Broker, bucket: Bucket
) -> None:
    message = bucket.message("print('recorded')")
    s3 = bucket.s3
    keys = {"aws": {"access_key": s3.access_key, "secret_access_key": s3.secret_key}}
    database = {"type": "s3", "endpoint": s3.endpoint, "bucket": bucket.name, "credentials": keys}
    message["config"]["database"] = database
    s3.put(bucket.name, "experiments/demo", json.dumps({**message["experiment"], "status": "waiting"}).encode())
    send(rabbitmq, message)
    start(place, rabbitmq).saw("acknowledged")
    record = s3.call("GET", f"{bucket.name}/experiments/demo").json()
    assert record["status"] == "finished"
    assert record["time_added"] <= record["time_started"] <= record["time_finished"]
    assert record["outcome"]["verdict"] == "ok"


def test_nothing_is_left_when_all_is_done(place: Workplace, rabbitmq: Broker, bucket: Bucket) -> None:
    send(rabbitmq, bucket.message("print('clean')"))
    runner = start(place, rabbitmq, "--limit-tasks", "1")
    assert runner.ended() == 0
    assert not processes(str(place.working / "studio-runner"))
    assert not list((place.working / "studio-runner" / "experiments").iterdir())
    assert bucket.s3.uploads(bucket.name) == 0
    assert requests.get(bucket.s3.endpoint, timeout=10).ok
