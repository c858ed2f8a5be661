"""Experiments in containers: the built program, a real Apptainer, an image made here, stores and a registry."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.harness import Runner, Workplace, until


class Containers(Workplace):
    """A place whose messages name an image, and whose runners may run it."""

    def __init__(self, place: Workplace, apptainer: str, image: Path) -> None:
        self.__dict__ |= place.__dict__
        self.apptainer, self.image = apptainer, image

    def wanting(self, script: str, image: str = "", **members: Any) -> dict[str, Any]:
        message = self.message(script, **members)
        message["experiment"]["artifacts"]["_singularity"] = {"qualified": image or f"file://{self.image}"}
        return message

    def run(self, *options: str, **env: str) -> Runner:
        ours = ["--singularity", self.apptainer, "--file-root", str(self.image.parent)]
        return self.start(*ours, "--singularity-allow", f"file://{self.image.parent}/*", *options, env=env)


@pytest.fixture
def place(place: Workplace, apptainer: str, image: Path) -> Containers:
    return Containers(place, apptainer, image)


LOOK = """
import inside, json, os, pathlib, sys
pathlib.Path("../modeldir/model").write_text("made inside")
home = os.environ["STUDIOML_HOME"]
seen = {
    "argv": sys.argv[1:], "image": inside.where, "prefix": sys.prefix, "cwd": os.getcwd(), "env": dict(os.environ),
    "beside": sorted(os.listdir(home)), "experiments": os.listdir(home + "/experiments"),
    "shadow": os.path.exists("/etc/shadow"), "processes": [name for name in os.listdir("/proc") if name.isdigit()],
    "writable": [path for path in ("/proc/sys/kernel/core_pattern", "/usr", os.environ["HOME"], "/tmp")
                 if os.access(path, os.W_OK)],
    "capabilities": [line.split()[1] for line in open("/proc/self/status") if line.startswith("CapEff")],
}
print(json.dumps({"seen": seen}))
"""


def test_an_experiment_runs_in_its_image_and_sees_nothing_else_of_the_host(place: Containers) -> None:
    message = place.wanting(LOOK, args=["'two words'", "'$HOME'"])
    message["config"]["env"] = {"A.odd-name": 'it\'s\n"$(id)" `x`', "MORE": "%PATH%:%AMQP_MGT_URL%", "IFS": "/"}
    place.publish(message)
    runner = place.run(AMQP_MGT_URL="http://secret", LD_LIBRARY_PATH="/nowhere")
    place.settled()
    assert runner.stop() == 0
    document = place.metadata()
    assert document["studioml"]["status"] == "completed", place.output()
    seen = document["seen"]
    assert place.result("modeldir", "model") == b"made inside"
    assert seen["argv"] == ["two words", "$HOME"]
    assert seen["image"] == "in the image"
    assert seen["prefix"] == seen["env"]["VIRTUAL_ENV"] == seen["cwd"].removesuffix("workspace") + "_runner/venv"
    assert seen["env"]["A.odd-name"] == 'it\'s\n"$(id)" `x`'
    assert seen["env"]["MORE"] == "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:%AMQP_MGT_URL%"
    assert not [name for name in seen["env"] if name.startswith(("APPTAINER", "SINGULARITY", "AMQP"))]
    assert "/nowhere" not in seen["env"].get("LD_LIBRARY_PATH", "")
    assert seen["beside"] == ["environments", "experiments"]
    assert seen["experiments"] == [seen["env"]["STUDIOML_EXPERIMENT"]]
    assert not seen["shadow"]
    assert len(seen["processes"]) <= 3
    assert seen["writable"] == [seen["env"]["HOME"], "/tmp"]
    assert seen["capabilities"] == ["0000000000000000"]


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("raise SystemExit(7)", "main.py ended with exit status 7"),
        ("raise SystemExit(137)", "main.py ended with exit status 137"),
        ("import os; os.kill(os.getpid(), 9)", "main.py was killed by SIGKILL"),
        ("import os; os.abort()", "main.py was killed by SIGABRT"),
        ("import os; os.kill(os.getppid(), 9)", "main.py was killed by SIGKILL"),
    ],
)
def test_how_it_ended_is_told_as_without_a_container(place: Containers, script: str, said: str) -> None:
    place.publish(place.wanting(script))
    runner = place.run("--max-attempts", "1")
    place.settled()
    assert runner.stop() == 0
    assert said in place.output()
    assert place.metadata()["studioml"]["status"] == "failed"


# Counts SIGTERMs, and has a child that leaves its process group.
STUBBORN = """
import pathlib, signal, subprocess, sys, time
asked = []
signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
print("running", flush=True)
while not asked:
    time.sleep(0.05)
time.sleep(0.5)
pathlib.Path("../modeldir/asked").write_text(str(len(asked)))
"""


def test_the_time_limit_asks_it_to_end_once_and_leaves_nothing(place: Containers) -> None:
    place.publish(place.wanting(STUBBORN, max_duration="2s"))
    runner = place.run("--max-attempts", "1")
    place.settled()
    assert runner.stop() == 0
    assert "it was stopped at its time limit (max_duration 2s)" in place.output()
    assert place.result("modeldir", "asked") == b"1"
    assert not place.experiments()


def command(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text()


def attempt_of(pid: int) -> int:
    """Return the process of the attempt that this one descends from."""
    while "\0attempt\0" not in command(pid):
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return pid


@pytest.mark.parametrize("whom", ["attempt", "runner"])
def test_whatever_is_killed_nothing_goes_on_in_the_container(place: Containers, whom: str) -> None:
    place.publish(place.wanting(STUBBORN))
    runner = place.run("--limit-tasks", "1")

    def sleepers() -> list[int]:
        return [pid for pid in place.experiments() if "time.sleep(600)" in command(pid)]

    (sleeper,) = until(sleepers, "it runs, and its child")
    os.kill(attempt_of(sleeper) if whom == "attempt" else runner.process.pid, signal.SIGKILL)
    until(lambda: not place.experiments(), "all is gone", 10)
    if whom == "attempt":
        assert runner.ended() == 0
    assert place.waiting == ["message"]
