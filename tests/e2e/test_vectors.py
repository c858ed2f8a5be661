"""Real clients' messages (tests/vectors) through a real RabbitMQ and a real S3 server, and what came back."""

from __future__ import annotations

import io
import json
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest

from runner.errors import MachineError
from runner.sandbox import interpreters
from tests.e2e.harness import Workplace, archive, until
from tests.servers.ceph import S3Server
from tests.servers.rabbitmq import Broker

VECTORS = Path(__file__).resolve().parent.parent / "vectors"
STORED = VECTORS / "objects" / "cl-data"

HELLO = b"""
import json, os, sys
print("hello", json.dumps(sys.argv[1:]), os.environ.get("KIT_ENV"), sorted(os.listdir("..")))
print(json.dumps({"hello": {"args": len(sys.argv) - 1}}))
"""
TASK = b"""
import os, pickle
os.makedirs("../retval", exist_ok=True)
with open("../retval/retval", "wb") as file:
    pickle.dump({"labels": sorted(os.listdir("..")), "kitdata": open("../kitdata/kitdata.txt").read()}, file)
"""
# The clients' blobs that were not kept; each under the key that its message names.
BLOBS = {
    "48a2cc3eeb83e6933cbc4bdc7b7d4dcd293e1a7b6d67647fd93f5ea1863181c4": {"hello.py": HELLO},
    "a6413c6202daab88f8ae40a644491aaffe0c70d85e0359500141d5a2e7abd2c2": {"./task.py": b"pass\n"},
    "6f9c751e9261ebfe24238f24871e587b3dd5180bd66cc80c71c3cbfa170043ca": {"./args.pkl": b"N."},
    "d3e5ee3774250744770b3da8847e8591fdc3b6066e09764614473244b08f10db": {"completion_service_client.py": TASK},
    "e91020d303d5cfd584c16ced27c1264a11122214a5941729722517a34ee98663": {"./kitdata.txt": b"data"},
}
OUTCOMES = {
    "clear_hello": "done",
    "clear_persistent": "done",
    "clear_hello_dirartifact": "done",
    "clear_pkg_six": "done",
    "clear_cli_pipfreeze": "done",
    "clear_cli_unpatched_client": "done",
    "clear_gzip_config": "done",
    "clear_hyperparam": "done",
    "clear_sqs": "done",
    "clear_completion_service": "done",
    "clear_local_reuse": "given back: 1 GPU slot on each of 2 GPUs",
    "clear_url": "done",
}


class Site:
    """Two buckets in place of the clients' own, filled with what they had stored."""

    def __init__(self, s3: S3Server) -> None:
        self.s3, self.data, self.meta = s3, s3.bucket(), s3.bucket()
        for path in STORED.rglob("*.tar*"):
            s3.put(self.data, path.relative_to(STORED).as_posix(), path.read_bytes())
        for name, files in BLOBS.items():
            s3.put(self.data, f"blobstore/{name}.tar", archive(files))
        s3.put(self.data, "x.txt", b"from a URL\n", acl="public-read")

    def message(self, name: str, **resources: Any) -> dict[str, Any]:
        """Return a client's message with the test's endpoint, buckets and keys, submitted just now."""
        text = (VECTORS / f"{name}.json").read_text()
        for theirs, ours in {
            "cl-data-meta": self.meta,
            "cl-meta": self.meta,
            "cl-data": self.data,
            "127.0.0.1:5000": self.s3.host,
            '"testing-secret"': json.dumps(self.s3.secret_key),
            '"testing"': json.dumps(self.s3.access_key),
        }.items():
            text = text.replace(theirs, ours)
        message: dict[str, Any] = json.loads(text)
        message["experiment"]["time_added"] = time.time()
        message["experiment"]["resources_needed"].update(resources)
        message["experiment"]["pythonver"] = python()
        return message

    def keys(self, prefix: str) -> list[str]:
        """List a part of the bucket."""
        listing = self.s3.call("GET", self.data, query=f"?list-type=2&prefix={prefix}").text
        return [part.partition("</Key>")[0] for part in listing.split("<Key>")[1:]]

    def members(self, key: str) -> dict[str, bytes]:
        """Read a stored archive."""
        body = self.s3.call("GET", f"{self.data}/{key}").content
        with tarfile.open(fileobj=io.BytesIO(body)) as stored:
            return {each.name: stored.extractfile(each).read() for each in stored if each.isfile()}  # type: ignore[union-attr]

    def documents(self) -> dict[str, dict[str, Any]]:
        """Return the scraped metadata by the experiments' keys."""
        keys = [key for key in self.keys("metadata/") if "scrape-host-" in key]
        found = [self.s3.call("GET", f"{self.data}/{key}").json() for key in keys]
        return {document["studioml"]["experiment"]["key"]: document for document in found}


def python() -> str:
    """The clients had Python 3.11; a machine without one runs their messages with its own."""
    try:
        interpreters.find("3.11")
    except MachineError:
        return f"{sys.version_info[0]}.{sys.version_info[1]}"
    return "3.11"


def test_real_clients_messages_run_and_leave_what_the_protocol_says(
    place: Workplace, rabbitmq: Broker, s3: S3Server, capsys: pytest.CaptureFixture[str]
) -> None:
    site = Site(s3)
    messages = {name: site.message(name) for name in OUTCOMES}
    for name, message in messages.items():
        s3.put(site.meta, f"experiments/{message['experiment']['key']}", json.dumps(message["experiment"]).encode())
        rabbitmq.declare(queue(name), durable=name == "clear_persistent")
        rabbitmq.publish(queue(name), json.dumps(message).encode())
    options = ("--amqp-url", rabbitmq.url, "--amqp-mgt-url", rabbitmq.management_url)
    runner = place.start(*options, local=False)
    done = [name for name, outcome in OUTCOMES.items() if outcome == "done"]
    until(lambda: runner.log.count("acknowledged") == len(done), "all are acknowledged", 400)
    for name in set(OUTCOMES) - set(done):
        runner.saw(OUTCOMES[name].removeprefix("given back: "))
    assert runner.stop() == 0, runner.log
    documents = site.documents()
    with capsys.disabled():
        print(f"\n{'message':28}{'outcome':42}{'status':11}objects")
        for name, message in messages.items():
            key = message["experiment"]["key"]
            status = documents[key]["studioml"]["status"] if key in documents else "-"
            stored = [each.removeprefix(f"experiments/{key}/") for each in site.keys(f"experiments/{key}/")]
            print(f"{name:28}{OUTCOMES[name]:42}{status:11}{' '.join(stored)}")
    for name, message in messages.items():
        if OUTCOMES[name] == "done":
            check_done(site, message, documents, message["experiment"]["key"])
            assert rabbitmq.depth(queue(name)) == 0
        else:
            assert rabbitmq.depth(queue(name)) == 1
    check_hello(site, messages["clear_hello"])
    check_completion_service(site, messages["clear_completion_service"])
    check_hyperparam(site, messages["clear_hyperparam"])


def queue(name: str) -> str:
    properties = VECTORS / f"{name}.json.props.json"
    if not properties.exists():
        return "rmq_cl_sqs"
    return json.loads(properties.read_text())["routing_key"].removeprefix("StudioML.") + f"_{name}"


def check_done(site: Site, message: dict[str, Any], documents: dict[str, dict[str, Any]], key: str) -> None:
    """Check what every completed experiment leaves."""
    experiment = message["experiment"]
    record = site.s3.call("GET", f"{site.meta}/experiments/{key}").json()
    assert record["status"] == "finished"
    if "output" in experiment["artifacts"]:
        assert next(iter(site.members(f"experiments/{key}/output.tar"))) == "output"
    if "_metadata" in experiment["artifacts"]:
        told = documents[key]["studioml"]
        assert told["status"] == "completed"
        assert told["experiment"]["project"] == experiment["project"]
        assert told["artifacts"]["workspace"] == experiment["artifacts"]["workspace"]["qualified"]
        installed = {entry["package"]["key"] for entry in told["pipdeptree"]}
        wanted = {line.partition("==")[0].lower().replace("_", "-") for line in experiment["pythonenv"] if "==" in line}
        assert wanted <= {name.replace("_", "-") for name in installed}
        assert site.s3.secret_key not in json.dumps(documents[key])


def check_hello(site: Site, message: dict[str, Any]) -> None:
    """Check one experiment to the last object: nothing for labels whose directories stayed empty."""
    key = message["experiment"]["key"]
    lease, *artifacts = site.keys(f"experiments/{key}/")
    assert lease.startswith(f"experiments/{key}/_lease-")
    assert artifacts == [f"experiments/{key}/output.tar"]
    output = site.members(f"experiments/{key}/output.tar")["output"].decode()
    labels = sorted([*message["experiment"]["artifacts"], "_runner"])
    assert f'hello ["10", "two words", "$HOME;\\"q\\""] from-config {labels}\n' in output
    assert site.documents()[key]["hello"] == {"args": 3}
    requests = [name for name in site.keys("metadata/") if "request-host-" in name]
    kept = [site.s3.call("GET", f"{site.data}/{name}").text for name in requests]
    assert any(key in text for text in kept)
    assert not any(site.s3.secret_key in text for text in kept)


def check_completion_service(site: Site, message: dict[str, Any]) -> None:
    """Check the task of a completion service: its result, whole, and no log, since it has none."""
    key = message["experiment"]["key"]
    assert site.keys(f"experiments/{key}/")[1:] == [f"experiments/{key}/retval.tar"]
    result = site.members(f"experiments/{key}/retval.tar")["retval"]
    for text in (b"clientscript", b"_runner", b"data"):
        assert text in result
    assert b"output" not in result


def check_hyperparam(site: Site, message: dict[str, Any]) -> None:
    """Check that a mutable artifact that has not changed was not uploaded again."""
    place = f"experiments/{message['experiment']['key']}/workspace.tar"
    assert site.s3.call("GET", f"{site.data}/{place}").content == (STORED / place).read_bytes()


def test_reused_artifacts_come_without_credentials_of_their_own(
    place: Workplace, rabbitmq: Broker, s3: S3Server
) -> None:
    """The client's message of a reused model and a single file, for a machine without GPUs, without its pip freeze."""
    site = Site(s3)
    message = site.message("clear_local_reuse", gpus=0, gpuCount=0)
    message["experiment"]["pythonenv"] = []
    script = b"print(open('../oldmodel/model.json').read(), open('../onefile/one.txt').read())\n"
    script += b"open('../weights/new.bin', 'w').write('x')\n"
    blob = message["experiment"]["artifacts"]["workspace"]["key"]
    s3.put(site.data, blob, archive({"hello.py": script}))
    rabbitmq.declare("rmq_reuse")
    rabbitmq.publish("rmq_reuse", json.dumps(message).encode())
    options = ("--amqp-url", rabbitmq.url, "--amqp-mgt-url", rabbitmq.management_url)
    runner = place.start(*options, local=False)
    assert "completed" in runner.saw("acknowledged")
    key = message["experiment"]["key"]
    output = site.members(f"experiments/{key}/output.tar")["output"]
    for label in ("oldmodel", "onefile"):
        stored = site.members(message["experiment"]["artifacts"][label]["key"])
        assert next(iter(stored.values())).strip() in output
    assert site.members(f"experiments/{key}/weights.tar") == {"new.bin": b"x"}
