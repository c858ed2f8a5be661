"""Every command of the documents that starts our program is run, as it stands there: only its servers are others."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from urllib.error import HTTPError, URLError

import pytest

from tests.documents import PAGES, ROOT, commands, lines_of_code
from tests.e2e.harness import Runner, archive, put, until
from tests.servers.ceph import S3Server
from tests.servers.hook import serving as slack
from tests.servers.http import Served
from tests.servers.http import serving as http
from tests.servers.index import offer, wheel
from tests.servers.rabbitmq import Broker
from tests.servers.sqs import REGION, SQSServer
from tests.servers.starting import free_ports

# Each line once, with what stands after the program's name.
LINES = dict(found for page in PAGES for found in commands(page))
STARTED = [line for line, words in LINES.items() if words.startswith("-")]
SHOWING = [line for line, words in LINES.items() if words.split()[0] in ("listen", "top")]
DONE = [line for line in LINES if line not in (*STARTED, *SHOWING)]
# What the others find: directories, and keys.
FIRST = [line for line in lines_of_code(ROOT / "README.md") if line.startswith("mkdir ")]
FIRST += [line for line, words in LINES.items() if words.startswith("keys ")]


def short(line: str) -> str:
    return LINES[line][:60]


KEPT = ("LANG", "PYENV_ROOT", "STUDIO_TESTS_COVERAGE")
SCRIPT = b"import os\nopen('../modeldir/model', 'w').write('trained')\n"


@dataclass(frozen=True)
class Desk:
    """A user's home and working directory, the environment of the shell there, and the names of the real servers."""

    home: Path
    env: dict[str, str]
    elsewhere: dict[str, str]

    def start(self, line: str, log: Path, **env: str) -> Runner:
        """Start a line as it stands in a document."""
        return Runner(["bash", "-c", f"cd && exec env {self._here(line)}"], [], log, {**self.env, **env})

    def done(self, line: str) -> str:
        """Run a line as it stands in a document to its end, which has to be a good one; return what it says."""
        command = ["bash", "-c", f"cd && {self._here(line)}"]
        done = subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def status(self, path: str) -> int:
        """What the newest runner answers; 0 while it does not."""
        try:
            with urllib.request.urlopen(f"http://{self.env['PROM_ADDRESS']}/{path}", timeout=20) as answer:
                return int(answer.status)
        except HTTPError as error:
            return error.code
        except URLError:
            return 0

    def _here(self, line: str) -> str:
        for shown, real in self.elsewhere.items():
            line = line.replace(shown, real)
        return line


@pytest.fixture(scope="module")
def desk(
    tmp_path_factory: pytest.TempPathFactory,
    program: list[str],
    working: Path,
    broker: Broker,
    s3: S3Server,
    moto: SQSServer,
) -> Iterator[Desk]:
    home = tmp_path_factory.mktemp("home")
    (home / "studio-runner.pyz").symlink_to(program[-1])
    (home / "examples").symlink_to(ROOT / "examples")
    put(home / "my-code/train.py", SCRIPT)
    with ExitStack() as stack:
        index, hook = stack.enter_context(http()), stack.enter_context(slack())
        offer(index, wheel("six", "1.0", files={"six.py": "__version__ = '1.0'"}), wheel("numpy", "2.0"))
        index.objects["/code.tar"] = Served(archive({"train.py": SCRIPT}))
        code = {"workspace": {"url": f"http://{index.host}/code.tar", "unpack": True, "mutable": False}}
        message = {"experiment": {"key": "demo", "filename": "train.py", "artifacts": code}}
        (home / "message.json").write_text(json.dumps(message))
        page = f"127.0.0.1:{free_ports(1)[0]}"
        elsewhere = {
            "amqp://guest:guest@rabbit.example:5672/%2f": broker.url,
            "amqp://guest:guest@rabbit.example/%2f": broker.url,
            "s3://minio.example:9000/storage": f"s3://{s3.host}/{s3.bucket()}",
            "s3://s3.us-west-2.amazonaws.com/demo-$account": f"s3://{s3.host}/{s3.bucket()}",
            "--sqs-region us-west-2": f"--sqs-region us-west-2 --sqs-endpoint {moto.endpoint}",
            "https://hooks.slack.com/services/…": hook.url,
            "127.0.0.1:9090": page,
            "/var/tmp": str(working),
        }
        env = {
            **{
                name: value
                for name, value in os.environ.items()
                if name in ("LANG", "PYENV_ROOT", "STUDIO_TESTS_COVERAGE")
            },
            "PATH": f"{Path(program[0]).parent}:{os.environ['PATH']}",
            "HOME": str(home),
            "WORKING_DIR": str(working),
            "STUDIO_RUNNER_ROOT": str(working / "unpacked"),
            "AMQP_MGT_URL": broker.management_url,
            "AWS_ACCESS_KEY_ID": s3.access_key,
            "AWS_SECRET_ACCESS_KEY": s3.secret_key,
            "PIP_INDEX_URL": f"http://{index.host}/simple/",
            "PROM_ADDRESS": page,
        }
        for queue in ("rmq_mine", "rmq_mine_response", "rmq_team_a"):
            broker.declare(queue)
        moto.create("sqs_demo")
        made = Desk(home, env, elsewhere)
        for line in FIRST:
            made.done(line)
        yield made
        moto.clear()
        for queue in ("rmq_mine", "rmq_mine_response", "rmq_team_a"):
            broker.delete(queue)


@pytest.fixture(scope="module")
def neighbour(desk: Desk, broker: Broker, moto: SQSServer) -> Iterator[Runner]:
    """A runner that takes work from all queues, for those who submit it, or ask."""
    servers = {"AMQP_URL": broker.url, "SQS_REGION": REGION, "SQS_ENDPOINT": moto.endpoint}
    line = next(line for line in STARTED if "--queue-root" in line and "--clear-text-messages" in line)
    runner = desk.start(line, desk.home / "neighbour.log", **servers)
    until(lambda: desk.status("readyz") == 200, "it is ready")
    yield runner
    runner.close()


@pytest.mark.parametrize("line", STARTED, ids=short)
def test_a_runner_is_ready_and_stops_when_it_is_told_to(desk: Desk, line: str, tmp_path: Path) -> None:
    runner = desk.start(line, tmp_path / "log")
    try:
        until(lambda: desk.status("readyz") == 200, "it is ready")
        assert runner.stop() == 0, runner.log
    finally:
        runner.close()
    assert not re.search("ERROR|Traceback", runner.log)


@pytest.mark.parametrize("line", DONE, ids=short)
def test_a_command_does_what_it_is_for(desk: Desk, neighbour: Runner, line: str) -> None:
    said = desk.done(line)
    if "submit" in line:
        (name,) = re.findall(r"^submitted (\S+) to ", said, re.MULTILINE)
        neighbour.saw(f"experiment '{name}', attempt 1, completed")


@pytest.mark.parametrize("line", SHOWING, ids=short)
def test_what_is_shown_is_shown_until_it_is_interrupted(
    desk: Desk, neighbour: Runner, line: str, tmp_path: Path
) -> None:
    shown = desk.start(line, tmp_path / "shown")
    try:
        until(lambda: shown.log, "it shows something")
        assert shown.stop(signal.SIGINT) == 0, shown.log
    finally:
        shown.close()
    assert neighbour.process.poll() is None
