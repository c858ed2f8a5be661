"""Control groups of a kernel that lets the runner make them; tools/check_groups.sh has one anywhere."""

from __future__ import annotations

import json
import os
import signal
import tarfile
from pathlib import Path
from typing import Any

import pytest

from runner.machine import delegated, procfs
from tests.e2e.harness import Workplace, until

MIB = 2**20
REASON = delegated.obstacle()
pytestmark = pytest.mark.skipif(bool(REASON), reason=f"no control groups can be made here: {REASON}")


def groups() -> list[Path]:
    base = delegated.base()
    assert base
    return list(base.glob("experiment-*"))


def tried(place: Workplace, script: str, *options: str, **members: Any) -> dict[str, Any]:
    """Run an experiment, which may fail; return what its metadata says of it."""
    place.publish(place.message(script, **members))
    runner = place.start("--max-attempts", "1", "--limit-tasks", "1", *options)
    assert runner.ended(120) == 0, runner.log
    assert not groups()
    newest = max(place.store.rglob("scrape-*.json"), key=lambda path: path.stat().st_mtime_ns)
    return dict(json.loads(newest.read_text())["studioml"])


def output(place: Workplace) -> str:
    with tarfile.open(next(place.store.rglob("output.tar"))) as stored:
        file = stored.extractfile("output")
        assert file
        return file.read().decode()


def test_what_wants_too_much_memory_is_ended_by_the_kernel_at_once(place: Workplace) -> None:
    script = "import os, time\nif os.fork():\n    time.sleep(600)\nx = b'x' * (500 << 20)"
    told = tried(place, script, resources_needed={"cpus": 1, "ram": "64mb"})
    assert told["verdict"]["verdict"] == "oom"
    assert "it uses more than 61 MiB of memory, but asked for 61 MiB: raise" in told["verdict"]["sentence"]
    assert 0.95 * 64e6 < told["resources"]["used"]["ram"] <= 64e6


def test_files_that_are_read_and_written_are_no_memory(place: Workplace) -> None:
    script = "import time\nwith open('x', 'wb') as f:\n    for _ in range(100): f.write(bytes(1 << 20))\n"
    script += "for _ in range(3): open('x', 'rb').read(1); time.sleep(0.5)"
    told = tried(place, script, resources_needed={"cpus": 1, "ram": "64mb", "hdd": "200mb"})
    assert told["verdict"]["verdict"] == "ok"
    assert 2 * MIB < told["resources"]["used"]["ram"] < 30 * MIB


ESCAPES = """
import os, sys, time
if os.fork() == 0:
    os.setsid()
    os.execve("/bin/sleep", ["sleep", "654"], {})
print("escaped", flush=True)
time.sleep(600)
"""


def test_a_new_runner_kills_what_a_killed_one_has_left(place: Workplace) -> None:
    place.publish(place.message(ESCAPES))
    runner = place.start()
    group = until(groups, "a group")[0]
    assert (group / "memory.max").read_text() == f"{64_000_000 // 4096 * 4096}\n"
    pids = until(lambda: _many(group), "the group has both processes")
    attempt = int(group.name.split("-")[1])
    for pid in (runner.process.pid, attempt):
        os.kill(pid, signal.SIGKILL)
    runner.ended()
    assert group.exists()
    assert procfs.birth(pids[1]), "nobody knows that it is an experiment's"
    place.start("--limit-idle-duration", "1s", "--queue-match", "nothing").ended()
    assert not groups()
    assert not any(map(procfs.birth, pids))


def _many(group: Path) -> list[int]:
    pids = [int(pid) for pid in (group / "cgroup.procs").read_text().split()]
    return pids if len(pids) > 1 and any(b"654" in _argv(pid) for pid in pids) else []


def _argv(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def test_the_runner_itself_goes_on_when_an_attempt_is_killed(place: Workplace) -> None:
    place.publish(place.message(ESCAPES))
    place.start("--max-attempts", "1")
    group = until(groups, "a group")[0]
    until(lambda: _many(group), "the group has both processes")
    os.kill(int(group.name.split("-")[1]), signal.SIGKILL)
    until(lambda: group not in groups(), "the group is gone")


BOMB = """
import os, pathlib, time
print("user", os.getuid())
own = pathlib.Path("/sys/fs/cgroup" + open("/proc/self/cgroup").read().strip().partition("::")[2])
print("limit", (own / "pids.max").read_text())
for name in ("memory.max", "pids.max", "cgroup.procs", "../cgroup.procs"):
    try:
        (own / name).write_text("0")
    except PermissionError:
        print("kept out")
try:
    for _ in range(50):
        if os.fork() == 0:
            time.sleep(600)
except BlockingIOError:
    print("no more processes")
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can run programs as others")
def test_another_user_is_in_a_group_that_it_cannot_change(place: Workplace) -> None:
    for path in (place.working, *place.working.parents):
        if path != Path("/"):
            path.chmod(path.stat().st_mode | 0o011)
    told = tried(place, BOMB, "--run-as", "nobody", "--max-processes", "20")
    said = output(place)
    assert told["verdict"]["verdict"] == "ok", said
    assert "limit 20" in said
    assert said.count("kept out") == 4
    assert "no more processes" in said
    assert "user 0\n" not in said
