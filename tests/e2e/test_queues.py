"""No message is lost, none runs twice without need, and who waits is told why: with real brokers and real faults."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.harness import WATCHED, Workplace, put, until
from tests.servers.kube_apiserver import RealApi
from tests.servers.kubernetes import ApiServer
from tests.servers.rabbitmq import Broker
from tests.servers.sqs import REGION, SQSServer

ROOT = Path(__file__).resolve().parent.parent.parent
KEYS = ROOT / "tests" / "vectors" / "keys"
KEY = ["--private-key", str(KEYS / "studioml_request.pem"), "--passphrase-file", str(KEYS / "secret_phrase")]


def counting(place: Workplace, then: str = "") -> str:
    """A script that leaves a mark each time that it is run."""
    return f"open('{place.root}/runs', 'a').write('x')\n{then}"


def runs(place: Workplace) -> int:
    path = place.root / "runs"
    return len(path.read_text()) if path.exists() else 0


def waiting_for(path: Path) -> str:
    return f"import pathlib, time\nwhile not pathlib.Path('{path}').exists(): time.sleep(0.05)\n"


def lease(place: Workplace, key: str = "demo") -> dict[str, Any]:
    (path,) = (place.store / "experiments" / key).glob("_lease-*.json")
    return json.loads(path.read_bytes())  # type: ignore[no-any-return]


# Leases


def test_a_message_that_comes_again_after_the_end_is_acknowledged_and_not_run(place: Workplace) -> None:
    message = place.message(counting(place))
    for name, told in (("first", "completed"), ("second", "was over already")):
        place.publish(message, name)
        runner = place.start("--limit-idle-duration", "1s")  # one that remembers nothing
        runner.saw(told)
        place.settled()
        assert runner.ended() == 0
    assert runs(place) == 1
    place.publish({**message, "experiment": {**message["experiment"], "time_added": time.time()}})  # submitted anew
    place.start().saw("completed")
    assert runs(place) == 2


def test_nobody_can_have_the_message_of_another_queue_taken_for_one_of_his(place: Workplace) -> None:
    """Who knows names and time of somebody's experiment could have its message settled with his own."""
    named = {"project": "p", "time_added": time.time()}
    first = place.message(counting(place, waiting_for(place.root / "go")), "one", **named)
    second = place.message(counting(place), "two", **named)
    second["experiment"]["key"] = "one"
    (place.queues / "local_other").mkdir()
    place.publish(first)
    runner = place.start("--max-cores", "2")
    until(lambda: runs(place) == 1, "the first one runs")
    place.publish(second).replace(place.queues / "local_other" / "message")
    runner.saw("local_other: experiment 'one', attempt 1, completed")
    (place.root / "go").touch()
    place.settled()
    assert runs(place) == 2


def test_an_experiment_that_is_alive_elsewhere_is_left_alone(place: Workplace, tmp_path: Path) -> None:
    go = place.root / "go"
    message = place.message(counting(place, waiting_for(go)))
    place.publish(message)
    first = place.start("--max-cores", "1")  # which is full then, and takes nothing more
    until(lambda: runs(place), "the experiment runs")
    said = until(lambda: lease(place), "there is a lease")
    assert (said["state"], said["attempt"]) == ("running", 1)
    (place.queues / "local_test" / "message").rename(place.root / "held")  # as if a broker had lost sight of it
    place.publish(message, "again")
    (tmp_path / "other").mkdir()
    second = place.start("--working-dir", str(tmp_path / "other"))
    line = second.saw("attempt 1 runs on")
    assert "given back" in line
    go.touch()
    first.saw("completed")
    place.settled()
    assert "was over already" in first.log + second.log
    assert runs(place) == 1
    assert lease(place)["state"] == "over"


def test_failures_are_counted_from_runner_to_runner_and_the_last_one_is_a_dead_letter(place: Workplace) -> None:
    (place.queues / "local_test" / ".dead").mkdir()
    path = place.publish(place.message(counting(place, "raise SystemExit(3)")))
    body = path.read_bytes()
    for attempt in (1, 2, 3):
        runner = place.start("--limit-tasks", "1")
        runner.saw(f"attempt {attempt}, failed: main.py ended with exit status 3")
        assert runner.ended() == 0
    assert runs(place) == 3
    assert place.waiting == []
    (dead,) = (place.queues / "local_test" / ".dead").iterdir()
    assert dead.read_bytes() == body


def test_a_lost_machine_costs_no_attempt(place: Workplace) -> None:
    go = place.root / "go"
    place.publish(place.message(counting(place, waiting_for(go))))
    for number in (1, 2):
        runner = place.start("--max-attempts", "1")
        until(lambda number=number: runs(place) == number, "the experiment runs")
        runner.process.kill()
        runner.ended()
        until(lambda: not place.experiments(), "nothing is left of it")
    go.touch()
    place.start("--max-attempts", "1").saw("completed")
    place.settled()
    assert runs(place) == 3


def test_a_poisonous_message_costs_one_line_an_attempt(place: Workplace) -> None:
    place.publish(place.message("raise SystemExit('poison')"))
    runner = place.start("--max-attempts", "2")
    runner.saw("not tried again")
    assert len([line for line in runner.log.splitlines() if "WARNING" in line]) == 2


# Acknowledgement windows


def test_an_experiment_longer_than_the_brokers_window_runs_once(
    place: Workplace, impatient_broker: Broker, tmp_path: Path
) -> None:
    """The broker takes the message back every 5 seconds or so, and gives it to either runner."""
    queue = impatient_broker.declare(f"rmq_{uuid.uuid4().hex[:8]}", durable=True)
    message = place.message(counting(place, "import time\ntime.sleep(17)\nprint('finished')"))
    impatient_broker.publish(queue, json.dumps(message).encode())
    given = ("--amqp-url", impatient_broker.url, "--amqp-mgt-url", impatient_broker.management_url, "--max-cores", "1")
    first = place.start(*given, local=False)
    first.saw("consumer_timeout")
    until(lambda: runs(place), "the experiment runs")
    (tmp_path / "other").mkdir()
    second = place.start(*given, "--working-dir", str(tmp_path / "other"), local=False)
    first.saw("the broker has taken back a message")
    first.saw("completed")
    until(lambda: impatient_broker.depth(queue) == 0, "the queue is empty")
    assert (first.stop(), second.stop()) == (0, 0)
    assert impatient_broker.depth(queue) == 0
    assert runs(place) == 1
    assert "finished\n" in place.output()
    assert (first.log + second.log).count("attempt 1 completed") + second.log.count("attempt 1, completed") <= 1
    assert "came again while it runs" in first.log or "runs on" in second.log
    impatient_broker.delete(queue)


# Connections


def test_named_queues_need_no_management_api_and_tls_trusts_the_operators_authority(
    place: Workplace, rabbitmq: Broker
) -> None:
    queue, other = rabbitmq.declare(), rabbitmq.declare()
    for each in (queue, other):
        rabbitmq.publish(each, json.dumps(place.message("print('by name')", key=each)).encode())
    given = ("--amqp-url", rabbitmq.tls_url, "--amqp-mgt-url", "http://127.0.0.1:1", "--queue", queue)
    stranger = place.start(*given, local=False)
    assert "--amqp-ca" in stranger.saw("certificate")
    assert stranger.stop() == 0
    runner = place.start(*given, "--amqp-ca", rabbitmq.authority, local=False)
    runner.saw("completed")
    assert runner.stop() == 0
    assert (rabbitmq.depth(queue), rabbitmq.depth(other)) == (0, 1)
    assert "broker-Secret" not in stranger.log + runner.log


def test_a_queue_that_is_deleted_ends_its_experiments(place: Workplace, rabbitmq: Broker) -> None:
    queue = rabbitmq.declare()
    script = "print('begun', flush=True)\n" + counting(place, "import time\ntime.sleep(600)")
    rabbitmq.publish(queue, json.dumps(place.message(script)).encode())
    given = ("--amqp-url", rabbitmq.url, "--amqp-mgt-url", rabbitmq.management_url)
    runner = place.start(*given, *WATCHED, local=False)
    runner.saw(f"queue {queue} found")
    until(lambda: runs(place), "the experiment runs")
    looked = sum(runner.series("runner_queue_refresh_success").values())
    seen = "the queue was seen, and is not taken for one that was never there"
    until(lambda: sum(runner.series("runner_queue_refresh_success").values()) > looked, seen)
    rabbitmq.delete(queue)
    runner.saw("its queue has been deleted")
    until(lambda: not place.experiments(), "the experiment is stopped")
    runner.saw("stopped")
    assert runner.stop() == 0
    assert "begun\n" in place.output()


# Reports


@dataclass
class Line:
    """A queue with one for its reports: how to publish, and the options of a runner and a listener."""

    queue: str
    publish: Callable[[bytes], None]
    options: list[str]
    env: dict[str, str]


@pytest.fixture(params=["directory", "rabbitmq", "sqs"])
def line(request: pytest.FixtureRequest, place: Workplace) -> Iterator[Line]:
    if request.param == "directory":
        (place.queues / "local_test_response").mkdir()
        yield Line("local_test", lambda body: place.publish(body) and None, ["--queue-root", str(place.queues)], {})
    elif request.param == "rabbitmq":
        broker: Broker = request.getfixturevalue("rabbitmq")
        queue = broker.declare()
        broker.declare(f"{queue}_response")
        options = ["--amqp-url", broker.url, "--amqp-mgt-url", broker.management_url]
        yield Line(queue, lambda body: broker.publish(queue, body), options, {})
    else:
        aws: SQSServer = request.getfixturevalue("moto")
        queue = f"sqs_{uuid.uuid4().hex[:8]}"
        aws.create(queue)
        aws.create(f"{queue}_response")
        options = ["--sqs-region", REGION, "--sqs-endpoint", aws.endpoint]
        yield Line(queue, lambda body: aws.publish(queue, body), options, aws.environ)
        aws.clear()


def keys_for(place: Workplace, line: Line) -> list[str]:
    keys = place.root / "keys"
    put(keys / line.queue, (KEYS / "studioml_request.pub.pem").read_bytes())
    return ["--response-signatures-dir", str(keys)]


def reports(place: Workplace, line: Line, last: str) -> list[dict[str, Any]]:
    """Read the reports of the experiment as its experimenter does, until it is in its last state."""
    options = ("--experiment", "demo", "--timeout", "90s")
    listener = subprocess.Popen(
        [*place.program, "listen", *line.options, *KEY, "--json", *options, line.queue],
        env={**place.env, **line.env},
        stdout=subprocess.PIPE,
        text=True,
    )
    found: list[dict[str, Any]] = []
    try:
        assert listener.stdout is not None
        for text in listener.stdout:
            found.append(json.loads(text))
            if found[-1].get("progress", {}).get("state") == last:
                break
    finally:
        listener.kill()
        listener.communicate()
    return found


def test_everything_that_happens_is_reported_in_order(place: Workplace, line: Line) -> None:
    script = (
        "import sys, json\nprint('a line', flush=True)\nprint('a trouble', file=sys.stderr, flush=True)\n"
        "print(json.dumps({'loss': 0.5}), flush=True)\n"
    )
    runner = place.start(*keys_for(place, line), *line.options, local=False, env=line.env)
    line.publish(json.dumps(place.message(script)).encode())
    found = reports(place, line, "Success")
    states = [report["progress"].get("state", "Prestart") for report in found if "progress" in report]
    assert sorted(set(states), key=states.index) == ["Prestart", "Started", "Success"]
    said = {entry["message"]: entry.get("severity") for entry in (report.get("logging") for report in found) if entry}
    assert said["a line"] == "Info"
    assert said["a trouble"] == "Error"
    documents = [json.loads(each["progress"]["json"]) for each in found if each.get("progress", {}).get("json")]
    assert documents[0] == {"loss": 0.5}
    assert [each["studioml"]["verdict"]["verdict"] for each in documents[1:]] == ["ok"]
    assert len({report["uniqueId"] for report in found}) == 1
    runner.saw("completed")
    assert runner.stop() == 0


def test_a_failure_is_reported_when_it_is_final_and_refused_messages_are_dead(place: Workplace, line: Line) -> None:
    runner = place.start(*keys_for(place, line), *line.options, "--max-attempts", "2", local=False, env=line.env)
    line.publish(json.dumps(place.message("raise SystemExit(7)")).encode())
    runner.saw("not tried again")
    found = reports(place, line, "Failed")
    progress = [report["progress"] for report in found if "progress" in report]
    assert len([each for each in progress if '"verdict"' in each.get("json", "")]) == 2
    states = Counter(each.get("state", "Prestart") for each in progress if "json" not in each)
    assert states["Started"] == 2
    assert states["Failed"] == 1
    assert states["Stopping"] == 1  # of the first attempt
    failure = next(report["progress"] for report in found if report.get("progress", {}).get("state") == "Failed")
    assert "exit status 7" in failure["error"]["msg"]


# Why a queue waits


def explain(place: Workplace, queue: str) -> str:
    done = subprocess.run(
        [*place.program, "explain", "--working-dir", str(place.working), queue],
        env=place.env,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return done.stdout + done.stderr


def test_explain_says_why_a_queue_waits(place: Workplace) -> None:
    assert "no runner works in" in explain(place, "local_test")
    for name in ("local_old", "other", "local_big", "local_response", "local_many"):
        (place.queues / name).mkdir()
    big, old = place.message("pass", key="big"), place.message("pass", key="old")
    big["experiment"]["resources_needed"]["cpus"] = 1000
    old["experiment"]["pythonver"] = "3.5"
    put(place.queues / "local_big" / "m", json.dumps(big).encode())
    put(place.queues / "local_old" / "m", json.dumps(old).encode())
    go = place.root / "go"
    place.publish(place.message(counting(place, waiting_for(go))))
    runner = place.start("--max-cores", "2")
    until(lambda: runs(place), "the experiment runs")
    runner.saw("1000")
    expected = {
        "local_nowhere": "knows of no queue local_nowhere",
        "other": "does not match --queue-match",
        "local_response": "a queue for reports",
        "local_old": "3.5",
        "local_big": "1000",
        "local_test": "1 of its experiments run here",
    }
    for queue, told in expected.items():
        until(lambda queue=queue, told=told: told in explain(place, queue), f"{queue}: {told}")
    many = place.message("pass", key="many")
    many["experiment"]["resources_needed"]["cpus"] = 2
    put(place.queues / "local_many" / "m", json.dumps(many).encode())
    until(
        lambda: "0 of" in explain(place, "local_many") or "waits" in explain(place, "local_many"), "the machine is full"
    )
    lines = [text for text in runner.log.splitlines() if "local_big" in text or "local_old" in text]
    assert len(lines) <= 4 + 2  # what does not change is said once: found, and the reason
    go.touch()
    assert runner.stop() == 0


def test_a_runner_whose_queues_are_not_there_says_once_which_are(place: Workplace) -> None:
    (place.queues / "mine").mkdir()
    (place.queues / "mine_response").mkdir()
    named = place.start("--queue", "mime")
    assert "there are only local_test, mine, and --queue names mime" in named.saw("no queue is read for work")
    (place.queues / "local_test").rmdir()
    matched = place.start("--queue-mismatch", "x")
    told = r"there are only mine, and none matches --queue-match ^(rmq|sqs|local)_.*$ and not --queue-mismatch x"
    assert told in matched.saw("no queue is read for work")
    (place.queues / "local_new").mkdir()
    put(place.queues / "local_new" / "m", json.dumps(place.message("pass")).encode())
    matched.saw("completed")
    assert matched.log.count("no queue is read") == 1


# The end


def test_a_stop_signal_during_four_experiments_stores_results_and_gives_all_messages_back(
    place: Workplace, tmp_path: Path
) -> None:
    numbers = range(4)
    for number in numbers:
        script = f"import pathlib, time\nprint('begun', flush=True)\npathlib.Path('{place.root}/up{number}').touch()\n"
        place.publish(place.message(script + "time.sleep(600)", key=f"exp{number}"), f"message{number}")
    runners = [place.start("--grace-period", "2s")]
    while len(runners) * len(os.sched_getaffinity(0)) < len(numbers):
        working = tmp_path / f"working{len(runners)}"
        working.mkdir()
        runners.append(place.start("--grace-period", "2s", "--working-dir", str(working)))
    until(lambda: all((place.root / f"up{number}").exists() for number in numbers), "all of them run")
    for runner in runners:
        runner.process.send_signal(signal.SIGTERM)
    assert [runner.ended(25) for runner in runners] == [0] * len(runners), "30s unless --grace-period says otherwise"
    assert place.waiting == [f"message{number}" for number in numbers]
    for number in numbers:
        assert "begun\n" in place.output(f"exp{number}")
    assert not place.experiments()


def test_kubernetes_suspends_a_runner_and_lets_it_work_again(place: Workplace, any_api: ApiServer | RealApi) -> None:
    """In a mount namespace, where a pod's service account can be put where pods have it."""
    if not shutil.which("unshare") or subprocess.run(["unshare", "-rm", "true"], check=False).returncode:
        pytest.skip("no mount namespaces here: a pod cannot be imitated")
    where = "/run/secrets/kubernetes.io/serviceaccount"
    setup = f'mount -t tmpfs none /run && mkdir -p {where} && cp {any_api.account}/* {where} && exec "$@"'
    place.program = ["unshare", "-rm", "--kill-child", "sh", "-c", setup, "sh", *place.program]
    go = place.root / "go"
    place.publish(place.message(counting(place, waiting_for(go))))
    runner = place.start(env=any_api.environ)
    until(lambda: runs(place), "the experiment runs")
    any_api.put("studioml-go-runner", "DrainAndSuspend")
    runner.saw("suspended")
    place.publish(place.message(counting(place), key="other"), "later")
    go.touch()
    runner.saw("'demo', attempt 1, completed")  # what runs goes on
    time.sleep(1)
    assert place.waiting == ["later"]
    any_api.put("pod-1", "Running")
    runner.saw("'other', attempt 1, completed")
    place.settled()
    runner.process.send_signal(signal.SIGTERM)
