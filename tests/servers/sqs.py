"""SQS for tests: two programs that speak it, each of which checks what the other lets pass."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import botocore.session
import pytest
import requests

from tests.servers.starting import StartError, free_ports, wait

REGION = "us-west-2"
KEY, SECRET = "studiomltestkey", "studiomltestsecret0123456789abcdef"


class SQSServer:
    """One of them, on a loopback port."""

    def __init__(self, kind: str, root: Path) -> None:
        self.kind, self.root = kind, root
        self.port = free_ports(1)[0]
        self._process: subprocess.Popen[bytes] | None = None
        session = botocore.session.Session()
        session.set_credentials(KEY, SECRET)
        self.client = session.create_client("sqs", REGION, endpoint_url=self.endpoint)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def environ(self) -> dict[str, str]:
        """What a runner finds its credentials by."""
        return {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET}

    def start(self) -> None:
        programs = {
            "moto": ["moto_server", "-H", "127.0.0.1", "-p", str(self.port)],
            "ministack": ["ministack"],
        }
        binary, *arguments = programs[self.kind]
        environ = {
            **os.environ,
            **self.environ,
            "AUTH": "true",
            "BIND_HOST": "127.0.0.1",
            "GATEWAY_PORT": str(self.port),
            "SERVICES": "sqs",
            "TMPDIR": str(self.root),
        }
        with (self.root / "log").open("ab") as output:
            self._process = subprocess.Popen(
                [str(Path(sys.executable).parent / binary), *arguments], stdout=output, stderr=output, env=environ
            )
        wait(self._serves, seconds=60)

    def pause(self) -> None:
        """Let it answer nothing for a while."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def end(self) -> None:
        if self._process:
            self._process.kill()
            self._process.wait()

    def create(self, queue: str, **attributes: str) -> str:
        """Make a queue; return its URL."""
        if queue.endswith(".fifo"):
            attributes["FifoQueue"] = "true"
        return str(self.client.create_queue(QueueName=queue, Attributes=attributes)["QueueUrl"])

    def url(self, queue: str) -> str:
        return str(self.client.get_queue_url(QueueName=queue)["QueueUrl"])

    def arn(self, queue: str) -> str:
        return str(self._attributes(queue)["QueueArn"])

    def publish(self, queue: str, body: bytes) -> None:
        group = {"MessageGroupId": "g", "MessageDeduplicationId": os.urandom(8).hex()}
        more = group if queue.endswith(".fifo") else {}
        self.client.send_message(QueueUrl=self.url(queue), MessageBody=body.decode(), **more)

    def depth(self, queue: str) -> int:
        """Count the messages of a queue, those that are hidden included."""
        told = self._attributes(queue)
        return int(told["ApproximateNumberOfMessages"]) + int(told["ApproximateNumberOfMessagesNotVisible"])

    def bodies(self, queue: str) -> list[bytes]:
        """Take everything out of a queue."""
        found = self.client.receive_message(QueueUrl=self.url(queue), MaxNumberOfMessages=10).get("Messages", [])
        for each in found:
            self.client.delete_message(QueueUrl=self.url(queue), ReceiptHandle=each["ReceiptHandle"])
        return [each["Body"].encode() for each in found]

    def clear(self) -> None:
        for url in self.client.list_queues().get("QueueUrls", []):
            self.client.delete_queue(QueueUrl=url)

    def _attributes(self, queue: str) -> dict[str, Any]:
        answer = self.client.get_queue_attributes(QueueUrl=self.url(queue), AttributeNames=["All"])
        return dict(answer["Attributes"])

    def _serves(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise StartError(f"{self.kind} ended: {(self.root / 'log').read_text(errors='replace')[-1000:]}")
        try:
            requests.get(self.endpoint, timeout=2)
            return True
        except requests.RequestException:
            return False


@contextmanager
def started(kind: str) -> Iterator[SQSServer]:
    """Run one until the context ends."""
    with ExitStack() as stack:
        root = stack.enter_context(tempfile.TemporaryDirectory(prefix=f"{kind}-", ignore_cleanup_errors=True))
        server = SQSServer(kind, Path(root))
        stack.callback(server.end)
        server.start()
        yield server


@pytest.fixture(scope="session")
def moto() -> Iterator[SQSServer]:
    with started("moto") as server:
        yield server


@pytest.fixture(scope="session")
def ministack() -> Iterator[SQSServer]:
    with started("ministack") as server:
        yield server


@pytest.fixture(params=["moto", "ministack"])
def sqs(request: pytest.FixtureRequest) -> Iterator[SQSServer]:
    """Each of them in turn, without any queue but a test's own."""
    server: SQSServer = request.getfixturevalue(request.param)
    yield server
    server.clear()
