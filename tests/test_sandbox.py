"""Requirements, environments, processes: what surrounds an experiment's code."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from runner.machine import process, procfs
from runner.message import request
from runner.order import Options, Order
from runner.place import Place
from runner.sandbox import environment
from runner.sandbox.base import Job
from runner.sandbox.requirements import installable
from runner.sandbox.venv import installed


def test_requirements_of_a_clients_machine_become_installable() -> None:
    made = installable(
        [
            "pkg-resources==0.0.0",
            "pkg_resources==0.0.0",
            "six==1.17.0 ",
            "studioml @ file:///home/me/studioml-0.0.49-py3-none-any.whl",
            "tool @ file:///home/me/tool",
            "thing[extra] @ file:///x/thing-1.2.tar.gz",
            "-e git+https://host/repo#egg=repo",
        ]
    )
    assert made.requirements == (
        "six==1.17.0",
        "studioml==0.0.49",
        "tool",
        "thing==1.2",
        "-e git+https://host/repo#egg=repo",
    )
    assert len(made.remarks) == 3
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
) -> Job:
    workspace = {"qualified": "s3://h:1/b/k.tar", "credentials": {"aws": {"access_key": "", "secret_access_key": ""}}}
    document = {
        "experiment": {
            "key": "k",
            "filename": "x.py",
            "pythonver": "3",
            "artifacts": {"workspace": workspace},
            "resources_needed": {"cpus": cpus},
        },
        "config": {"env": env or {}},
    }
    options = Options(home=str(tmp_path), env_allow=allow)
    order = Order(document, "q", 0, None, 3, "/usr/bin/python3", "3.11.2", False, options, gpus)
    return Job(request.from_document(document), order, Place(tmp_path, "name-1"), lambda *_: 0, print, time.sleep)


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
    assert seen["OMP_NUM_THREADS"] == seen["MKL_NUM_THREADS"] == seen["OPENBLAS_NUM_THREADS"] == "4"
    assert seen["OPENMP"] == "True"
    chosen = job(tmp_path, cpus=4, env={"OMP_NUM_THREADS": "1"})
    seen = environment.for_experiment(chosen, {"OMP_NUM_THREADS": "64"}, Path("/env/bin"))
    assert (seen["OMP_NUM_THREADS"], seen["MKL_NUM_THREADS"]) == ("1", "4")


def test_an_experiment_sees_the_cards_that_it_has_got_whatever_its_message_says(tmp_path: Path) -> None:
    mine = job(tmp_path, gpus=("GPU-1", "GPU-2"), env={"CUDA_VISIBLE_DEVICES": "0"})
    seen = environment.for_experiment(mine, {"CUDA_VISIBLE_DEVICES": "1", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}, Path("/"))
    assert seen["CUDA_VISIBLE_DEVICES"] == seen["NVIDIA_VISIBLE_DEVICES"] == "GPU-1,GPU-2"
    assert seen["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"


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
    end = time.monotonic() + 10
    while len(marked(mark)) > 2 and time.monotonic() < end:
        time.sleep(0.02)
    assert process.kill_marked(f"MARK={mark}", f"MARK={mark}") == 2
    while marked(mark) and time.monotonic() < end:
        time.sleep(0.02)
    assert not marked(mark)


def test_signalling_a_group_that_is_gone_is_no_error() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""], start_new_session=True)
    child.wait()
    process.signal_group(child.pid, signal.SIGTERM)
