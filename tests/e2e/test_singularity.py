"""Experiments in containers: the built program, a real Apptainer, an image made here, stores and a registry."""

from __future__ import annotations

import hashlib
import os
import signal
import tarfile
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.harness import Runner, Workplace, until
from tests.servers import index
from tests.servers.apptainer import Registry
from tests.servers.http import Served, serving


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


def command(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text()


def attempt_of(pid: int) -> int:
    """Return the process of the attempt that this one descends from."""
    while "\0attempt\0" not in command(pid):
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return pid


def running(place: Containers) -> int:
    """Wait for the experiment's child, and return its process."""

    def sleepers() -> list[int]:
        return [pid for pid in place.experiments() if "time.sleep(600)" in command(pid)]

    return until(sleepers, "it runs, and its child", 120)[0]


def test_a_stop_asks_it_to_end_once_and_leaves_nothing(place: Containers) -> None:
    place.publish(place.wanting(STUBBORN))
    runner = place.run("--grace-period", "0s")
    running(place)
    assert runner.stop() == 0
    assert "running\n" in place.output()
    assert place.result("modeldir", "asked") == b"1"
    assert not place.experiments()
    assert place.waiting == ["message"]


@pytest.mark.parametrize("whom", ["attempt", "runner"])
def test_whatever_is_killed_nothing_goes_on_in_the_container(place: Containers, whom: str) -> None:
    place.publish(place.wanting(STUBBORN))
    runner = place.run("--limit-tasks", "1")
    child = running(place)
    os.kill(attempt_of(child) if whom == "attempt" else runner.process.pid, signal.SIGKILL)
    until(lambda: not place.experiments(), "all is gone")
    if whom == "attempt":
        assert runner.ended() == 0
    assert place.waiting == ["message"]


ASTRAY = """
import json, os
for what in ("output", "modeldir", "_runner"):
    try:
        os.rename(f"../{what}", f"../{what}.old")
        os.symlink("/etc", f"../{what}")
        print(what, "is replaced")
    except OSError as error:
        print(what, "stays:", error.strerror)
try:
    os.symlink("/etc/passwd", "../_runner/planted")
except OSError as error:
    print("_runner is", error.strerror)
os.symlink("/etc/shadow", "../modeldir/shadow")
open("../a:b,c/file", "w").write("odd")
os.mkdir("../more")
"""


def test_code_inside_cannot_lead_the_runner_to_other_files_of_the_host(place: Containers) -> None:
    message = place.wanting(ASTRAY)
    message["experiment"]["artifacts"]["a:b,c"] = place.artifact("odd.tar", mutable=True)
    place.publish(message)
    runner = place.run("--max-attempts", "1")
    place.settled()
    assert runner.stop() == 0
    said = place.output()
    assert said.count("stays: Device or resource busy") == 3, said
    assert "_runner is Read-only file system" in said
    with tarfile.open(place.store / "experiments/demo/modeldir.tar") as stored:
        assert "shadow" not in stored.getnames(), "nobody could unpack a link out of it"
    with tarfile.open(place.store / "odd.tar") as stored:
        assert stored.getnames() == ["file"]


def test_requirements_go_over_the_images_packages_and_are_installed_once(place: Containers) -> None:
    script = "import apple, inside, sys; print(apple.version, apple.__file__.startswith(sys.prefix), inside.where)"
    with serving() as server:
        index.offer(server, index.wheel("apple", "1"))
        runner = place.run(PIP_INDEX_URL=f"http://{server.host}/simple/", PIP_NO_INDEX="", PIP_FIND_LINKS="")
        for key in ("first", "second"):
            place.publish(place.wanting(script, key=key, pythonenv=["apple==1"]))
            place.settled()
            assert "1 False in the image\n" in place.output(key)
    assert runner.stop() == 0
    assert "Successfully installed apple-1" in place.output("first")
    assert "apple-1" not in place.output("second")
    packages = {entry["package"]["key"] for entry in place.metadata()["studioml"]["pipdeptree"]}
    assert "apple" in packages


def test_an_image_from_a_store_is_checked_and_the_same_one_needs_no_other_environment(place: Containers) -> None:
    with serving() as server:
        server.objects["/lab.sif"] = Served(place.image.read_bytes(), {"ETag": '"1"'})
        runner = place.run("--singularity-allow", f"http://{server.host}/*", "--max-attempts", "1")
        for key, digest in (("good", hashlib.sha256(place.image.read_bytes()).hexdigest()), ("bad", "0" * 64)):
            message = place.wanting("import inside; print(inside.where)", f"http://{server.host}/lab.sif", key=key)
            message["experiment"]["artifacts"]["_singularity"]["hash"] = digest
            place.publish(message)
            place.settled()
    assert runner.stop() == 0
    assert "in the image\n" in place.output("good")
    assert "making a virtual environment" not in place.output("good")
    assert "it was changed or damaged" in place.output("bad")


def test_a_name_in_a_registry_is_what_it_stands_for_at_the_time(
    place: Containers, registry: Registry, root_file_system: Path
) -> None:
    name = f"{registry.host}/lab/python:1"
    user, password = registry.login

    def wanting(key: str, **members: Any) -> dict[str, Any]:
        script = "import os, sys; print(os.environ['FLAVOUR'], os.environ['PATH'], sys.prefix)"
        message = place.wanting(script, f"dockerhub://{name}", key=key, **members)
        plain = {"user": user, "password": password}
        message["experiment"]["artifacts"]["_singularity"]["credentials"] = {"plain": plain}
        return message

    allow = ["--singularity-allow", f"docker://{registry.host}/lab/*"]
    runner = place.run(*allow, "--max-attempts", "1", APPTAINER_NOHTTPS="1")
    for flavour in ("sweet", "sour"):
        digest = registry.push("lab/python", "1", root_file_system, ["PATH=/usr/bin:/bin", f"FLAVOUR={flavour}"])
        for key in (flavour, f"{flavour}2"):
            place.publish(wanting(key))
            place.settled(120)
            assert f"{flavour} /usr/bin:/usr/bin:/bin" in place.output(key), place.output(key)
            assert (digest in place.output(key)) == (key == flavour), "it is pulled once"
    place.publish(wanting("needy", pythonenv=["six"]))
    place.settled()
    assert "the image's Python 3." in place.output("needy"), place.output("needy")
    message = wanting("stranger")
    del message["experiment"]["artifacts"]["_singularity"]["credentials"]
    place.publish(message)
    place.settled()
    assert runner.stop() == 0
    assert "cannot be pulled: " in place.output("stranger")
    for log in (runner.log, place.output("sweet"), place.output("stranger")):
        assert password not in log


def test_what_is_not_allowed_is_left_to_others(place: Containers) -> None:
    place.publish(place.wanting("", "docker://evil.example/lab/python"))
    runner = place.run()
    runner.saw("this runner does not run containers of docker://evil.example/lab/python")
    assert runner.stop() == 0
    assert place.waiting == ["message"]


def test_a_file_that_is_no_image_is_the_experiments_fault(place: Containers) -> None:
    (place.image.parent / "image.txt").write_text("#!/bin/sh\n")
    place.publish(place.wanting("", f"file://{place.image.parent}/image.txt"))
    runner = place.run("--max-attempts", "1")
    place.settled()
    assert runner.stop() == 0
    assert "it is not a SIF file" in place.output()
    assert place.metadata()["studioml"]["verdict"]["verdict"] == "artifact"


def test_an_image_that_cannot_be_run_here_leaves_the_message_to_others(place: Containers) -> None:
    (place.image.parent / "broken.sif").write_bytes(place.image.read_bytes()[: 256 * 1024])
    place.publish(place.wanting("", f"file://{place.image.parent}/broken.sif"))
    runner = place.run()
    runner.saw("cannot start a container of the image: ")
    assert runner.stop() == 0
    assert place.waiting == ["message"]
