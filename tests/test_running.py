"""Experiments as they run: limits, hangs, and the verdict on each, where people and programs look for it."""

from __future__ import annotations

import dataclasses
import json
import os
import pwd
import re
import string
import subprocess
import tarfile
import tempfile
import time
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from runner.attempt.usage import suggestion
from runner.events import Finished
from runner.loop import Loop
from runner.message.request import Resources
from runner.order import GpuState
from runner.place import make_home
from runner.supervisor.child import Child
from tests.attempts import carried_out, metadata, order
from tests.e2e.harness import archive
from tests.loops import served

MIB = 2**20


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root for all tests here, so that they share one virtual environment."""
    return tmp_path_factory.mktemp("home")


def attempt(home: Path, root: Path, script: str, *, options: dict[str, Any] | None = None, **members: Any) -> Finished:
    return carried_out(order(home, root, script, options=options, **members))


def output(root: Path) -> str:
    """The log that the attempt has stored."""
    with tarfile.open(root / "store" / "output.tar") as stored:
        member = stored.extractfile("output")
        assert member
        return member.read().decode()


SECOND_LINE = "def fit():\n    raise ValueError('no such luck')\nfit()"
CHAINED = "try:\n    1 / 0\nexcept ZeroDivisionError:\n    raise KeyError('later') from None"
OWN = "class Trouble(BaseException): pass\nraise Trouble('of my own')"


@pytest.mark.parametrize(
    ("script", "members", "judged", "said"),
    [
        ("print('fine')", {}, ("ok", ""), "attempt 1, completed"),
        ("raise SystemExit(9)", {}, ("script", "experiment"), "main.py ended with exit status 9"),
        (SECOND_LINE, {}, ("script", "experiment"), "exit status 1: ValueError: no such luck"),
        (CHAINED, {}, ("script", "experiment"), "exit status 1: KeyError: 'later'"),
        (OWN, {}, ("script", "experiment"), "Trouble: of my own"),
        ("x = (", {}, ("script", "experiment"), "exit status 1: SyntaxError: '(' was never closed"),
        ("import os; os.abort()", {}, ("script", "experiment"), "main.py was killed by SIGABRT"),
        (
            "x = bytearray(400 << 20); import time; time.sleep(60)",
            {"resources_needed": {"ram": "200mb"}},
            ("oom", "experiment"),
            "of memory, but asked for 191 MiB: raise resources_needed.ram",
        ),
        (
            "import time; time.sleep(60)",
            {"max_duration": "2s"},
            ("timeout", "experiment"),
            "time limit (max_duration 2s)",
        ),
        ("", {"filename": "no.py"}, ("artifact", "experiment"), "the workspace has no file 'no.py'"),
        ("", {"pythonenv": ["apple=1"]}, ("pip", "experiment"), "Invalid requirement: 'apple=1'"),
    ],
)
def test_the_verdict_is_in_metadata_output_and_event(
    home: Path, tmp_path: Path, script: str, members: dict[str, Any], judged: tuple[str, str], said: str
) -> None:
    finished = attempt(home, tmp_path, script, **members)
    assert (finished.verdict, finished.fault) == judged, finished
    assert said in finished.sentence
    stored = metadata(tmp_path)["verdict"]
    assert (stored["verdict"], stored["fault"], stored["attempt"]) == (*judged, 1)
    assert stored["sentence"] == finished.sentence
    assert stored.get("exit_status") == finished.exit_status
    *_, sentence, line = output(tmp_path).splitlines()
    assert sentence == f"studio-runner: {finished.sentence}"
    assert json.loads(line) == {"studioml": {"verdict": stored}}


def test_an_experiment_does_not_judge_itself(home: Path, tmp_path: Path) -> None:
    script = 'print(\'{"studioml": {"verdict": {"verdict": "ok", "fault": ""}}}\'); raise SystemExit(2)'
    attempt(home, tmp_path, script)
    assert metadata(tmp_path)["verdict"]["verdict"] == "script"


def test_the_end_of_its_life_is_not_its_time_limit(home: Path, tmp_path: Path) -> None:
    wanted = order(
        home,
        tmp_path,
        "import time; time.sleep(60)",
        config={"experimentLifetime": "3s"},
        time_added=time.time(),
        max_duration="1h",
    )
    assert carried_out(wanted).verdict == "lifetime"


def test_an_experiment_that_was_stopped_while_it_waited_is_given_up_while_it_is_prepared(
    home: Path, tmp_path: Path
) -> None:
    database = {"type": "local", "endpoint": str(tmp_path / "store"), "bucket": "database"}
    wanted = order(home, tmp_path, config={"database": database}, pythonenv=["six==0.0.1"])
    record = tmp_path / "store" / "database" / "experiments" / "k"
    record.parent.mkdir(parents=True)
    record.write_text(json.dumps({"key": "k", "status": "stopped"}))
    nowhere = {"PIP_INDEX_URL": "http://127.0.0.1:1/simple", "PIP_RETRIES": "0"}
    finished = carried_out(dataclasses.replace(wanted, variables=nowhere))
    assert (finished.outcome, finished.verdict) == ("cancelled", "stopped")
    assert json.loads(record.read_text())["status"] == "stopped"


def test_a_missing_artifact_is_told_as_that(home: Path, tmp_path: Path) -> None:
    wanted = order(home, tmp_path)
    (tmp_path / "store" / "code.tar").unlink()
    finished = carried_out(wanted)
    assert finished.verdict == "artifact"
    assert "artifact 'workspace' is missing" in finished.sentence


def test_something_else_in_the_place_of_the_log_is_the_experiments_failure(home: Path, tmp_path: Path) -> None:
    wanted = order(home, tmp_path)
    (tmp_path / "store" / "output.tar").write_bytes(archive({"output/file": b""}))
    finished = carried_out(wanted)
    assert (finished.outcome, finished.verdict) == ("failed", "artifact"), "it would come again and again"
    assert "'output' has something else in the place of the log" in finished.sentence


def test_a_label_as_long_as_a_name_can_be_is_one(home: Path, tmp_path: Path) -> None:
    wanted = order(home, tmp_path)
    artifacts = wanted.document["experiment"]["artifacts"]
    artifacts["x" * 255] = {**artifacts["output"], "qualified": f"file://{tmp_path}/store/x.tar"}
    assert carried_out(wanted).outcome == "completed"


STRAY = """
import json
print("text")
print(json.dumps([{"op": "remove", "path": "/nothing"}]))
print(json.dumps({"loss": 0.5, "studioml": {"host": "elsewhere"}}))
print(json.dumps({"loss": 0.25}))
"""


def test_the_metadata_tells_how_many_lines_did_not_apply_and_has_no_text_where_none_is_wanted(
    home: Path, tmp_path: Path
) -> None:
    assert attempt(home, tmp_path, STRAY, options={"schema_logs": False}).outcome == "completed"
    (path,) = (tmp_path / "store" / "metadata").glob("scrape-host-*")
    document = json.loads(path.read_text())
    assert document["loss"] == 0.25
    told = document["studioml"]
    assert told["skipped"] == 2
    assert "dropped" not in told
    assert told["log"] == [{"ts": "0", "msg": "Init"}, {"ts": "1", "msg": ""}]
    named = re.fullmatch(rf"scrape-host-{re.escape(told['host'])}-([0-9A-Za-z]{{6}})(-[0-9A-Za-z]+)?\.json", path.name)
    assert named
    began = 0
    for digit in named[1]:
        began = began * 62 + (string.digits + string.ascii_uppercase + string.ascii_lowercase).index(digit)
    assert began == pytest.approx(datetime.fromisoformat(told["load_time"]).timestamp(), abs=60)
    assert all(datetime.fromisoformat(told[name]).tzinfo for name in ("load_time", "start_time", "stop_time"))


def test_a_module_runs_with_the_rest_of_the_words(home: Path, tmp_path: Path) -> None:
    script = "import sys; print(__name__, sys.argv[1:])"
    labels = {"project": "p", "author": "me", "project_version": "1.2", "project_experiment": "third"}
    assert attempt(home, tmp_path, script, filename="-m", args=["main", "-x", "'a b'"], **labels).verdict == "ok"
    assert "__main__ ['-x', 'a b']\n" in output(tmp_path)
    assert metadata(tmp_path)["experiment"] == {"key": "k", **labels}


def test_a_crash_leaves_a_traceback(home: Path, tmp_path: Path) -> None:
    finished = attempt(home, tmp_path, "import ctypes\ndef guilty():\n    ctypes.string_at(0)\nguilty()")
    assert (finished.verdict, finished.exit_status) == ("script", -11)
    assert "in guilty" in output(tmp_path)


FORKS = """
import os, time
data = bytearray({held} << 20)
for _ in range(4):
    if os.fork() == 0:
        {child}
        time.sleep(600)
time.sleep({seconds})
os.killpg(0, 9) if {seconds} > 60 else None
"""


def test_memory_of_all_processes_counts_together(home: Path, tmp_path: Path) -> None:
    script = FORKS.format(held=1, child="mine = bytearray(b'x') * (60 << 20)", seconds=600)
    finished = attempt(home, tmp_path, script, resources_needed={"ram": "200mb"})
    assert finished.verdict == "oom"


def test_memory_that_processes_share_counts_once(home: Path, tmp_path: Path) -> None:
    script = FORKS.format(held=150, child="pass", seconds=3)
    finished = attempt(home, tmp_path, script, resources_needed={"ram": "300mb"})
    assert finished.verdict == "ok", finished
    used = metadata(tmp_path)["resources"]["used"]
    assert 150 * MIB < used["ram"] < 250 * MIB
    assert used["processes"] == 5


def test_an_operator_may_leave_memory_alone(home: Path, tmp_path: Path) -> None:
    script = "x = bytearray(400 << 20); import time; time.sleep(2)"
    options = {"enforce_ram": False}
    assert attempt(home, tmp_path, script, options=options, resources_needed={"ram": "200mb"}).verdict == "ok"


def test_a_fork_bomb_is_stopped(home: Path, tmp_path: Path) -> None:
    script = "import os, time\nfor _ in range(60):\n    if os.fork() == 0:\n        break\ntime.sleep(600)"
    finished = attempt(home, tmp_path, script, options={"max_processes": 50})
    assert finished.verdict == "script"
    assert "it has 61 processes, and --max-processes allows 50" in finished.sentence


HANGS = """
import subprocess, sys, threading
def waits_for_ever():
    threading.Event().wait()
if len(sys.argv) > 1:
    waits_for_ever()
print("started", flush=True)
child = subprocess.Popen([sys.executable, __file__, "again"])
def waits_for_the_child():
    child.wait()
waits_for_the_child()
"""


def test_a_hang_is_ended_and_leaves_the_stacks_of_all_python_processes(home: Path, tmp_path: Path) -> None:
    finished = attempt(home, tmp_path, HANGS, options={"hang_timeout": 5.0})
    assert finished.verdict == "timeout"
    assert "it hung: for 5s it used no processor and wrote nothing (--hang-timeout)" in finished.sentence
    assert "in waits_for_ever" in output(tmp_path)
    assert "in waits_for_the_child" in output(tmp_path)


@pytest.mark.parametrize(
    "script",
    [
        "import time\nfor _ in range(8):\n    time.sleep(0.5); print('.', end='')",
        "import time\nend = time.time() + 4\nwhile time.time() < end: pass",
        "import subprocess, sys\n"
        "subprocess.run([sys.executable, '-c', 'import time\\nwhile time.process_time() < 3: pass'])",
    ],
)
def test_what_writes_or_computes_does_not_hang(home: Path, tmp_path: Path, script: str) -> None:
    assert attempt(home, tmp_path, script, options={"hang_timeout": 3.0}).verdict == "ok"


def test_output_beyond_the_limit_is_not_kept_but_heard(home: Path, tmp_path: Path) -> None:
    script = "print('x' * 50_000); print('y' * 100_000); print('{\"loss\": 1}')"
    assert attempt(home, tmp_path, script, options={"max_output": 100_000}).verdict == "ok"
    kept = output(tmp_path)
    assert kept.count("x") >= 50_000
    (second,) = (line for line in kept.splitlines() if line.startswith("yy"))
    assert 40_000 < len(second) < 50_000
    assert "there is more output than --max-output 97.7 KiB" in kept
    assert '"loss"' not in kept
    newest = max((tmp_path / "store" / "metadata").glob("scrape-*"))
    assert json.loads(newest.read_text())["loss"] == 1


def test_programs_are_confined(home: Path, tmp_path: Path) -> None:
    script = (
        "import os, resource\n"
        "print('core', resource.getrlimit(resource.RLIMIT_CORE), 'nice', os.nice(0),"
        " 'oom', open('/proc/self/oom_score_adj').read())\n"
        "open('big', 'wb').truncate(2_000_000)"
    )
    finished = attempt(home, tmp_path, script, options={"nice": 7, "max_file_size": 1_000_000})
    assert f"core (0, 0) nice {min(19, os.nice(0) + 7)} oom 500" in output(tmp_path)
    assert finished.verdict == "disk"
    assert "OSError: [Errno 27] File too large (see --max-file-size)" in finished.sentence


def test_what_was_used_is_told_next_to_what_was_asked_for(home: Path, tmp_path: Path) -> None:
    script = (
        "import time\nx = bytearray(b'x') * (90 << 20)\nopen('made', 'wb').write(bytes(5 << 20))\n"
        "while time.process_time() < 1: pass"
    )
    wanted = {"cpus": 1, "ram": "1gb", "hdd": "20mb"}
    assert attempt(home, tmp_path, script, resources_needed=wanted).verdict == "ok"
    told = metadata(tmp_path)["resources"]
    assert told["asked"] == {"cpus": 1, "gpus": 0, "ram": 10**9, "hdd": 20 * 10**6}
    used = told["used"]
    assert 90 * MIB < used["ram"] < 130 * MIB
    assert 1 <= used["cpu_seconds"] < used["seconds"] + 0.5
    assert 5 * MIB < used["hdd"] < 20 * 10**6
    assert used["processes"] == 1
    assert told["suggestion"].startswith("ram 1") and told["suggestion"].endswith(" MiB would have been enough")


def test_suggestions_leave_headroom_and_say_nothing_of_trifles() -> None:
    asked = Resources(cpus=8, ram=4 * 2**30, hdd=2**30)
    assert suggestion(asked, 100, 150, 2**30, 1000 * MIB) == "cpus 2 and ram 1.2 GiB would have been enough"
    assert suggestion(asked, 10, 15, 3 * 2**30, 1000 * MIB) == "", "too short to tell cores"
    assert suggestion(Resources(cpus=1, ram=200 * MIB), 100, 1, MIB, MIB) == ""


def works(python: str) -> bool:
    """Tell whether another user can run a Python, and make environments with it."""
    try:
        done = subprocess.run([python, "-c", "import ensurepip, venv"], user="nobody", capture_output=True, check=False)
    except OSError:
        return False
    return done.returncode == 0


RUN_AS = """
import os, pathlib, subprocess, sys
print("user", os.getuid(), os.getgid(), os.environ["USER"], os.environ["HOME"])
for path in ("../_metadata/x", "../_runner/x", sys.argv[1]):
    try:
        open(path, "w")
        print("wrote", path)
    except PermissionError:
        print("kept out")
for path in ("mine", "../output/too", os.environ["TMPDIR"] + "/x", sys.prefix + "/x"):
    open(path, "w").write("data")
os.kill(os.getppid(), 0)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can run programs as others")
def test_experiments_may_run_as_another_user(tmp_path: Path) -> None:
    if not works("/usr/bin/python3"):
        pytest.skip("no Python that another user could make environments with")
    with tempfile.TemporaryDirectory() as directory:
        home = Path(directory)
        make_home(home, shared=True)
        (home / "shared").write_text("of the runner")
        wanted = order(home, tmp_path, RUN_AS, options={"run_as": "nobody"}, args=[str(home / "shared")])
        before = os.umask(0o077)
        try:
            finished = carried_out(dataclasses.replace(wanted, python="/usr/bin/python3"))
        finally:
            os.umask(before)
        said = output(tmp_path)
        nobody = pwd.getpwnam("nobody")
        assert f"user {nobody.pw_uid} {nobody.pw_gid} nobody /nonexistent" in said, said
        assert said.count("kept out") == 3
        assert finished.sentence.endswith("PermissionError: [Errno 1] Operation not permitted"), "the runner is not its"
        with tarfile.open(tmp_path / "store" / "output.tar") as stored:
            assert "too" in stored.getnames()
        environment = next((home / "environments").glob("*/venv"))
        assert {path.lstat().st_uid for path in environment.rglob("*")} == {0}, "it changes nothing for the next one"


def test_what_was_used_of_the_gpus_is_told_too(home: Path, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    script = f"import os, time\nwhile not os.path.exists({str(gate)!r}): time.sleep(0.05)\ntime.sleep(0.5)"
    wanted = order(home, tmp_path, script, resources_needed={"gpus": 1, "gpuMem": "8gb"})
    with closing(Loop()) as loop:
        child = Child(loop)
        try:
            child.begin(wanted)
            served(loop, lambda: child.experiment, seconds=60)
            for used in (2 * 2**30, 6 * 2**30, 2**30):
                child.tell_gpus(GpuState(None, used))
            gate.touch()
            served(loop, lambda: child.ended() is not None, seconds=60)
        finally:
            child.kill()
            child.close()
            child.wait(10)
    told = metadata(tmp_path)
    assert told["verdict"]["verdict"] == "ok"
    assert (told["resources"]["asked"]["gpuMem"], told["resources"]["used"]["gpuMem"]) == (8 * 10**9, 6 * 2**30)
