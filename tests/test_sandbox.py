"""Requirements, environments, processes: what surrounds an experiment's code."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from runner.machine import process, procfs
from runner.message import request
from runner.order import Options, Order
from runner.place import Place
from runner.sandbox import environment
from runner.sandbox.base import Job
from runner.sandbox.requirements import installable
from runner.sandbox.venv import installed, recipe_of
from tests.e2e.harness import until


def test_requirements_of_a_clients_machine_become_installable() -> None:
    made = installable(
        [
            "pkg-resources==0.0.0",
            "pkg_resources==0.0.0",
            "six==1.17.0 ",
            "studioml @ file:///home/me/studioml-0.0.49-py3-none-any.whl",
            "tool @ file:///home/me/tool",
            "thing[extra] @ file:///x/thing-1.2.tar.gz",
            "torch @ file:///x/torch-2.1.0%2Bcu118-cp311-cp311-linux_x86_64.whl#sha256=0a1b",
            "old @ file:///x/old-1.zip ; python_version < '3'",
            "odd @ file:///x/odd-1%0A--pre%0A.zip",
            "-e git+https://host/repo#egg=repo",
        ]
    )
    assert made.requirements == (
        "six==1.17.0",
        "studioml==0.0.49",
        "tool",
        "thing[extra]==1.2",
        "torch==2.1.0+cu118",
        "old==1 ; python_version < '3'",
        "odd",
        "-e git+https://host/repo#egg=repo",
    )
    assert len(made.remarks) == 6
    assert "submitting machine" in made.remarks[0]


@pytest.mark.parametrize(
    ("line", "python", "installed"),
    [
        ("tensorflow==1.15.2", "3.7.17", "tensorflow_gpu==1.15.2"),
        ("TensorFlow == 2.0.0 ; python_version < '3.8'", "3.7.17", "tensorflow_gpu == 2.0.0 ; python_version < '3.8'"),
        ("tensorflow==1.*", "3.6.15", "tensorflow_gpu==1.*"),
        ("tensorflow==1.14.0rc1", "3.11.2", "tensorflow_gpu==1.14.0rc1"),
        ("tensorflow", "3.7.17", "tensorflow_gpu"),
        ("tensorflow", "3.11.2", "tensorflow"),
        ("tensorflow==2.1.0", "3.7.17", "tensorflow==2.1.0"),
        ("tensorflow==2.16.1", "3.11.2", "tensorflow==2.16.1"),
        ("tensorflow[and-cuda]==2.16.1", "3.11.2", "tensorflow[and-cuda]==2.16.1"),
        ("tensorflow>=1.4", "3.7.17", "tensorflow>=1.4"),
        ("tensorflow-estimator==1.15.2", "3.7.17", "tensorflow-estimator==1.15.2"),
        ("tensorflow @ https://host/tensorflow.whl", "3.7.17", "tensorflow @ https://host/tensorflow.whl"),
    ],
)
def test_tensorflows_package_for_gpus_is_installed_where_it_is_one_of_its_own(
    line: str, python: str, installed: str
) -> None:
    assert installable([line], gpu_python=python).requirements == (installed,)
    assert installable([line]).requirements == (line,)


@pytest.mark.parametrize("line", ["studioml==0.0.49", "studioml", "StudioML @ file:///x", "studioml>=0.0.4"])
def test_the_clients_own_package_comes_from_the_workspace(line: str) -> None:
    assert installable([line, "studioml-extra==1"], studioml="/w/dist/studioml-1.tar.gz").requirements == (
        "/w/dist/studioml-1.tar.gz",
        "studioml-extra==1",
    )


def job(
    tmp_path: Path,
    *,
    env: dict[str, object] | None = None,
    cpus: int = 1,
    allow: tuple[str, ...] = (),
    gpus: tuple[str, ...] = (),
    pythonenv: list[str] | None = None,
    pip: list[str] | None = None,
) -> Job:
    workspace = {"qualified": "s3://h:1/b/k.tar", "credentials": {"aws": {"access_key": "", "secret_access_key": ""}}}
    document = {
        "experiment": {
            "key": "k",
            "filename": "x.py",
            "pythonver": "3",
            "artifacts": {"workspace": workspace},
            "pythonenv": pythonenv or [],
            "resources_needed": {"cpus": cpus},
        },
        "config": {"env": env or {}, "pip": pip or []},
    }
    options = Options(home=str(tmp_path), env_allow=allow)
    order = Order(document, "q", 0, None, 3, "/usr/bin/python3", "3.11.2", False, options, gpus)
    return Job(request.from_document(document), order, Place(tmp_path, "name-1"), lambda *_: 0, print, time.sleep)


def test_of_the_clients_own_packages_the_newest_is_installed_wherever_the_workspace_is(tmp_path: Path) -> None:
    made = job(tmp_path / "my home")
    request = dataclasses.replace(made.request, pythonenv=("studioml==0.0.9", "six==1"))
    (made.place.workspace / "dist").mkdir(parents=True)
    for version in ("0.0.9", "0.0.49", "0.0.5", "9 x"):
        (made.place.workspace / "dist" / f"studioml-{version}.tar.gz").touch()
    recipe = recipe_of(dataclasses.replace(made, request=request))
    newest = made.place.workspace / "dist" / "studioml-0.0.49.tar.gz"
    assert recipe.lists[0].requirements == (str(newest), "six==1")
    assert recipe.paths == (newest,)


def test_an_experiment_sees_harmless_variables_and_its_own_and_nothing_else(tmp_path: Path) -> None:
    environ = {"PATH": "/bin", "HOME": "/root", "LC_ALL": "C", "AMQP_URL": "s3cret", "PYTHONPATH": "/x", "PIP_X": "1"}
    seen = environment.for_experiment(job(tmp_path, env={"A": "1", "N": 3, "B": True}), environ, Path("/env/bin"))
    assert seen["PATH"] == "/env/bin:/bin"
    assert (seen["A"], seen["N"], seen["B"]) == ("1", "3", "true")
    assert seen["STUDIOML_EXPERIMENT"] == "name-1"
    assert seen["STUDIOML_HOME"] == str(tmp_path)
    assert seen["TMPDIR"] == str(tmp_path / "experiments/name-1/_runner/tmp")
    assert seen["CUDA_VISIBLE_DEVICES"] == seen["NVIDIA_VISIBLE_DEVICES"] == "-1"
    assert seen["AWS_SDK_LOAD_CONFIG"] == seen["PYTHONUNBUFFERED"] == "1"
    assert not {"AMQP_URL", "PYTHONPATH", "PIP_X", "OMP_NUM_THREADS"} & set(seen)


def test_threads_are_told_for_more_than_one_core(tmp_path: Path) -> None:
    seen = environment.for_experiment(job(tmp_path, cpus=4), {}, Path("/env/bin"))
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "GOTO_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        assert seen[name] == "4"
    assert seen["OPENMP"] == "True"
    chosen = job(tmp_path, cpus=4, env={"OMP_NUM_THREADS": "1"})
    seen = environment.for_experiment(chosen, {"OMP_NUM_THREADS": "64"}, Path("/env/bin"))
    assert (seen["OMP_NUM_THREADS"], seen["MKL_NUM_THREADS"]) == ("1", "4")


def test_an_experiment_sees_the_cards_that_it_has_got_whatever_its_message_says(tmp_path: Path) -> None:
    mine = job(tmp_path, gpus=("GPU-1", "GPU-2"), env={"CUDA_VISIBLE_DEVICES": "0"})
    seen = environment.for_experiment(mine, {"CUDA_VISIBLE_DEVICES": "1", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}, Path("/"))
    assert seen["CUDA_VISIBLE_DEVICES"] == seen["NVIDIA_VISIBLE_DEVICES"] == "GPU-1,GPU-2"
    assert seen["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"


def test_what_the_runner_knows_its_processes_by_is_no_messages_to_say(tmp_path: Path) -> None:
    ours = environment.for_experiment(job(tmp_path), {}, Path("/e"))
    asked = dict.fromkeys(("STUDIOML_EXPERIMENT", "STUDIOML_HOME", "TMPDIR", "NVIDIA_VISIBLE_DEVICES"), "mine")
    assert environment.for_experiment(job(tmp_path, env=asked), {}, Path("/e")) == ours


def test_an_environment_is_made_of_both_lists_with_the_clients_own_package_and_tensorflow_for_gpus(
    tmp_path: Path,
) -> None:
    mine = job(tmp_path, gpus=("GPU-1",), pythonenv=["studioml==0.0.49", "six==1.17.0"], pip=["tensorflow==1.15.2"])
    packed = mine.place.workspace / "dist" / "studioml-0.0.50.tar.gz"
    packed.parent.mkdir(parents=True)
    packed.touch()
    made = recipe_of(mine)
    assert [each.requirements for each in made.lists] == [(str(packed), "six==1.17.0"), ("tensorflow_gpu==1.15.2",)]
    assert made.paths == (packed,)
    packed.unlink()
    without = recipe_of(replace(mine, order=replace(mine.order, gpus=())))
    assert [each.requirements for each in without.lists] == [
        ("studioml==0.0.49", "six==1.17.0"),
        ("tensorflow==1.15.2",),
    ]


def test_a_message_reads_only_the_runners_harmless_and_allowed_variables(tmp_path: Path) -> None:
    asked = {"A": "%HOME%/%SECRET%/%NAME%/100%"}
    environ = {"HOME": "/root", "SECRET": "s3cret", "NAME": "me"}
    assert (
        environment.for_experiment(job(tmp_path, env=asked), environ, Path("/e"))["A"] == "/root/%SECRET%/%NAME%/100%"
    )
    seen = environment.for_experiment(job(tmp_path, env=asked, allow=("NAME",)), environ, Path("/e"))
    assert seen["A"] == "/root/%SECRET%/me/100%"


@pytest.mark.parametrize(
    ("value", "expanded"),
    [
        ("%PATH%:./bin", "/bin:./bin"),
        ("%OTHER%HOME%", "%OTHER/root"),
        ("%HOME%HOME%", "/rootHOME%"),
        ("%%HOME%%", "%/root%"),
        ("%PA%TH%%", "%PA%TH%%"),
        ("%home%", "%home%"),
    ],
)
def test_a_percent_sign_that_begins_no_known_name_is_one(value: str, expanded: str) -> None:
    assert environment.expand(value, {"PATH": "/bin", "HOME": "/root"}) == expanded
    assert environment.expand(value, {}) == value


def test_pip_sees_the_operators_index_settings_and_no_secrets(tmp_path: Path) -> None:
    environ = {"PIP_INDEX_URL": "u", "HTTPS_PROXY": "p", "AMQP_URL": "s3cret", "HOME": "/root"}
    seen = environment.for_installer(job(tmp_path), environ)
    assert (seen["PIP_INDEX_URL"], seen["HTTPS_PROXY"], seen["HOME"]) == ("u", "p", "/root")
    assert "AMQP_URL" not in seen


def test_installed_packages_are_listed_as_pipdeptree_does() -> None:
    listed = {entry["package"]["key"]: entry for entry in installed(str(Path(pytest.__file__).parent.parent))}
    package = listed["pytest"]["package"]
    assert package == {"key": "pytest", "package_name": "pytest", "installed_version": pytest.__version__}
    needed = {each["key"]: each for each in listed["pytest"]["dependencies"]}
    assert set(needed["pluggy"]) == {"key", "package_name", "installed_version", "required_version"}
    assert "<" in needed["pluggy"]["required_version"]


def test_metadata_that_nobody_can_read_is_no_package(tmp_path: Path) -> None:
    """pip lets wheels bring a nameless egg-info, and uv any bytes."""
    for info, file, content in (
        ("fig-1.dist-info", "METADATA", b"Name: fig\nVersion: 1\n"),
        ("tests.egg-info", "SOURCES.txt", b""),
        ("latin-1.dist-info", "METADATA", b"Name: latin\nVersion: 1\n\nSch\xf6n\n"),
    ):
        (tmp_path / info).mkdir()
        (tmp_path / info / file).write_bytes(content)
    assert [each["package"]["key"] for each in installed(str(tmp_path))] == ["fig"]


# A process tree: a child in the same group, a grandchild in a session of its own whose parent is gone.
TREE = """
import subprocess, sys, time
sleep = "import time; time.sleep(600)"
subprocess.Popen([sys.executable, "-c", sleep])
orphan = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {sleep!r}], start_new_session=True)"
subprocess.run([sys.executable, "-c", orphan])
print("ready", flush=True)
time.sleep(600)
"""

GUARD = f"""
import os, pathlib, sys
from runner.machine import procfs
from runner.machine import process
process.adopt_orphans()
env = {{**os.environ, "MARK": sys.argv[1]}}
child = process.start([sys.executable, "-c", {TREE!r}], env=env, cwd=pathlib.Path("/"))
assert child.stdout.readline() == b"ready\\n"
print(len(procfs.descendants(os.getpid())), flush=True)
sys.stdin.readline()
process.kill_descendants()
print(len(procfs.descendants(os.getpid())), flush=True)
"""


def guard(mark: str) -> subprocess.Popen[str]:
    root = Path(__file__).parent.parent
    return subprocess.Popen(
        [sys.executable, "-c", GUARD, mark],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    )


def marked(mark: str) -> list[int]:
    return [pid for pid in procfs.everybody() if f"MARK={mark}".encode() in procfs.environment(pid)]


def test_no_descendant_survives_not_even_one_in_a_session_of_its_own() -> None:
    mark = f"tree-{os.getpid()}"
    with guard(mark) as running:
        assert running.stdout is not None and running.stdin is not None
        assert int(running.stdout.readline()) == 3
        assert len(marked(mark)) == 3
        running.stdin.write("\n")
        running.stdin.flush()
        assert int(running.stdout.readline()) == 0
    assert not marked(mark)


def test_what_a_killed_attempt_left_is_found_by_its_mark() -> None:
    mark = f"left-{os.getpid()}"
    with guard(mark) as running:
        assert running.stdout is not None
        assert int(running.stdout.readline()) == 3
        running.kill()
    # The experiment's own process dies with the attempt; the others have to be found.
    until(lambda: len(marked(mark)) == 2, "its own process is dead")
    assert process.kill_marked(f"MARK={mark}", f"MARK={mark}") == 2
    until(lambda: not marked(mark), "the others are dead")


def test_signalling_a_group_that_is_gone_is_no_error() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""], start_new_session=True)
    child.wait()
    process.signal_group(child.pid, signal.SIGTERM)
