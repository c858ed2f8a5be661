"""A real RabbitMQ node for tests, with its management API, on loopback ports and in a directory of its own."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pika
import pika.exceptions
import pytest
import requests

from tests.servers.certificates import self_signed
from tests.servers.starting import StartError, free_ports, need, wait

# The script itself: Debian's wrapper of the same name changes the user and the log's place.
SCRIPT = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
USER, PASSWORD = "studio", "broker-Secret-0123"
EXCHANGE = "StudioML.topic"

CONFIG = """\
listeners.tcp.1 = 127.0.0.1:{amqp}
management.tcp.ip = 127.0.0.1
management.tcp.port = {management}
default_user = {user}
default_pass = {password}
default_user_tags.administrator = true
listeners.ssl.1 = 127.0.0.1:{tls}
ssl_options.certfile = {certificate}
ssl_options.keyfile = {key}
ssl_options.cacertfile = {certificate}
disk_free_limit.absolute = 1MB
vm_memory_high_watermark.absolute = 2GB
"""


class Broker:
    """A node that can be stopped and started again with its data."""

    def __init__(self, root: Path, advanced: str = "") -> None:
        self.root = root
        self.amqp_port, self.management_port, self.tls_port, self._dist_port, self._epmd_port = free_ports(5)
        self._node: subprocess.Popen[bytes] | None = None
        self._epmd: subprocess.Popen[bytes] | None = None
        values = {"amqp": self.amqp_port, "management": self.management_port, "user": USER, "password": PASSWORD}
        certificate, key = self_signed(root)
        values |= {"tls": self.tls_port, "certificate": certificate, "key": key}
        (root / "rabbitmq.conf").write_text(CONFIG.format(**values))
        (root / "advanced.config").write_text(f"[{{rabbit, [{advanced}]}}].\n")
        (root / "enabled_plugins").write_text("[rabbitmq_management].\n")

    @property
    def url(self) -> str:
        return f"amqp://{USER}:{PASSWORD}@127.0.0.1:{self.amqp_port}/"

    @property
    def tls_url(self) -> str:
        return f"amqps://{USER}:{PASSWORD}@127.0.0.1:{self.tls_port}/"

    @property
    def authority(self) -> str:
        """The PEM file of who vouches for it."""
        return str(self.root / "tls.crt")

    @property
    def management_url(self) -> str:
        return f"http://127.0.0.1:{self.management_port}"

    # The node

    def start(self) -> None:
        """Start the node and wait until it serves; with the name server of Erlang, which would outlive it otherwise."""
        if self._epmd is None:
            self._epmd = self._spawn("epmd", "-address", "127.0.0.1", "-port", str(self._epmd_port))
        self._node = self._spawn(str(SCRIPT), "-noinput")
        wait(self._serves, seconds=90)

    def stop(self) -> None:
        """Stop the node in an orderly way: what is durable stays."""
        if self._node:
            self._node.terminate()
            try:
                self._node.wait(30)
            except subprocess.TimeoutExpired:
                self.kill()
            self._node = None

    def kill(self) -> None:
        """Kill the node at once."""
        if self._node:
            self._node.kill()
            self._node.wait()
            self._node = None

    def pause(self) -> None:
        """Let the node answer nothing for a while."""
        assert self._node is not None
        self._node.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._node is not None
        self._node.send_signal(signal.SIGCONT)

    def alarm(self, *, on: bool) -> None:
        """Have the node believe that it is short of memory, or not any more."""
        watermark = "0.00001" if on else "0.6"
        control = [str(SCRIPT.parent / "rabbitmqctl"), "set_vm_memory_high_watermark", watermark]
        done = subprocess.run(control, env=self._environment(), check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr

    def restart(self) -> None:
        self.stop()
        self.start()

    def end(self) -> None:
        self.kill()
        if self._epmd:
            self._epmd.kill()
            self._epmd.wait()

    def _serves(self) -> bool:
        assert self._node is not None
        if self._node.poll() is not None:
            output = (self.root / "rabbitmq-server.out").read_text(errors="replace")
            raise StartError(f"rabbitmq-server ended with status {self._node.returncode}: {output[-1000:]}")
        try:
            if not self.api("GET", "overview").ok:
                return False
            with self._channel():
                return True
        except (pika.exceptions.AMQPError, requests.RequestException):
            return False

    def _spawn(self, *command: str) -> subprocess.Popen[bytes]:
        """Start a process that the kernel kills when this one dies, however it dies."""
        bound = ("setpriv", "--pdeathsig", "KILL", *command) if shutil.which("setpriv") else command
        with (self.root / f"{Path(command[0]).name}.out").open("ab") as output:
            return subprocess.Popen(
                bound, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=self._environment(), cwd=self.root
            )

    def _environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("RABBITMQ_", "ERL_"))}
        return {
            **kept,
            "HOME": str(self.root),
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": f"test-{self.amqp_port}@localhost",
            "RABBITMQ_NODE_PORT": str(self.amqp_port),
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_DIST_PORT": str(self._dist_port),
            "RABBITMQ_MNESIA_BASE": str(self.root / "data"),
            "RABBITMQ_LOG_BASE": str(self.root / "log"),
            "RABBITMQ_CONFIG_FILE": str(self.root / "rabbitmq.conf"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(self.root / "advanced.config"),
            "RABBITMQ_CONF_ENV_FILE": str(self.root / "none"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.root / "enabled_plugins"),
            "RABBITMQ_PID_FILE": str(self.root / "pid"),
            # Makes the script become the Erlang machine, instead of watching over it.
            "RABBITMQ_ALLOW_INPUT": "1",
        }

    # What clients and operators do

    def declare(self, queue: str = "", *, durable: bool = False, arguments: dict[str, Any] | None = None) -> str:
        """Make a queue and bind it as StudioML's clients do; returns its name."""
        queue = queue or f"rmq_{secrets.token_hex(4)}"
        with self._channel() as channel:
            channel.exchange_declare(EXCHANGE, "topic", durable=True, auto_delete=True)
            channel.queue_declare(queue, durable=durable, arguments=arguments)
            channel.queue_bind(queue, EXCHANGE, f"StudioML.{queue}")
        return queue

    def publish(self, queue: str, body: bytes) -> None:
        """Publish as StudioML's clients do."""
        properties = pika.BasicProperties(content_type="application/json", delivery_mode=2)
        with self._channel() as channel:
            channel.confirm_delivery()
            channel.basic_publish(EXCHANGE, f"StudioML.{queue}", body, properties, mandatory=True)

    def depth(self, queue: str) -> int:
        """Count the messages that nobody holds."""
        with self._channel() as channel:
            return int(channel.queue_declare(queue, passive=True).method.message_count)

    def purge(self, queue: str) -> None:
        with self._channel() as channel:
            channel.queue_purge(queue)

    def delete(self, queue: str) -> None:
        with self._channel() as channel:
            channel.queue_delete(queue)

    def api(self, method: str, path: str, **options: Any) -> requests.Response:
        """Call the management API."""
        return requests.request(
            method, f"{self.management_url}/api/{path}", auth=(USER, PASSWORD), timeout=10, **options
        )

    @contextmanager
    def connect(self) -> Iterator[Any]:
        """A blocking connection of its own."""
        with closing(pika.BlockingConnection(pika.URLParameters(self.url))) as connection:
            yield connection

    @contextmanager
    def _channel(self) -> Iterator[Any]:
        with self.connect() as connection:
            yield connection.channel()


@pytest.fixture(scope="session")
def broker() -> Iterator[Broker]:
    """The node; tests that stop it start it again."""
    need(SCRIPT, "epmd", install="apt-get install rabbitmq-server")
    with started() as node:
        yield node


@pytest.fixture(scope="session")
def impatient_broker(broker: Broker) -> Iterator[Broker]:
    """A node that takes a message back when it was held for 5 seconds; it looks every second."""
    with started("{consumer_timeout, 5000}, {channel_tick_interval, 1000}") as node:
        yield node


@pytest.fixture
def rabbitmq(broker: Broker) -> Iterator[Broker]:
    """The node, without any queue but a test's own."""
    yield broker
    for queue in broker.api("GET", "queues?disable_stats=true").json():
        with suppress(pika.exceptions.AMQPError):
            broker.delete(queue["name"])


@contextmanager
def started(advanced: str = "", tries: int = 3) -> Iterator[Broker]:
    """Start a node, again with other ports if need be; stop it and remove its files in the end.

    ``advanced`` are parameters of it, as Erlang has them.
    """
    with ExitStack() as stack:
        for attempt in range(1, tries + 1):
            directory = tempfile.TemporaryDirectory(prefix="rabbitmq-", ignore_cleanup_errors=True)
            made = Broker(Path(stack.enter_context(directory)), advanced)
            stack.callback(made.end)
            try:
                made.start()
                break
            except StartError:
                made.end()
                if attempt == tries:
                    raise
        yield made
