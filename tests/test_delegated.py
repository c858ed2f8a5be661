"""When the runner may make control groups, in directories that imitate them; real ones: tests/e2e/test_groups.py."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from runner.machine import cgroups, delegated


class Service:
    """A group as systemd delegates it, with the runner in it."""

    def __init__(self, root: Path) -> None:
        self.base = root / "runner.service"
        self.own = self.base
        self.base.mkdir()
        for name in ("cgroup.kill", "cgroup.type", "cgroup.subtree_control"):
            (self.base / name).touch()
        self.holds("memory", "pids", "cpu")
        self.has(os.getpid(), os.getppid())
        try:
            os.setxattr(self.base, "user.delegate", b"1")
        except OSError:
            pytest.skip("files have no attributes here, by which systemd marks what it delegates")

    def holds(self, *controllers: str) -> None:
        (self.base / "cgroup.controllers").write_text(" ".join(controllers) + "\n")

    def has(self, *pids: int) -> None:
        (self.own / "cgroup.procs").write_text("".join(f"{pid}\n" for pid in pids))


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Service:
    made = Service(tmp_path)
    monkeypatch.setattr(cgroups, "own", lambda: made.own)
    return made


def test_a_delegated_group_is_made_ready(service: Service) -> None:
    assert delegated.obstacle() == ""
    assert not (service.base / "studio-runner").exists(), "to ask changes nothing"
    assert delegated.prepare() == ""
    moved = (service.base / "studio-runner" / "cgroup.procs").read_text()
    assert moved == str(os.getppid()), "the runner, and who started it, which leaves nobody in the group"
    assert (service.base / "cgroup.subtree_control").read_text() == "+memory +pids"


def test_a_runner_that_is_started_in_the_leaf_takes_the_group_above_it(service: Service) -> None:
    service.own = service.base / "studio-runner"
    service.own.mkdir()
    service.has(os.getpid())
    (service.base / "cgroup.procs").write_text("")
    assert delegated.base() == service.base
    assert delegated.obstacle() == ""


def test_a_group_that_is_not_ours_is_left_alone(service: Service) -> None:
    def refused() -> str:
        before = sorted(path.name for path in service.base.iterdir())
        reason = delegated.prepare()
        assert sorted(path.name for path in service.base.iterdir()) == before
        assert reason == delegated.obstacle()
        return reason

    service.has(os.getpid(), os.getppid(), 2**22 + 1)
    assert refused() == f"other processes are in {service.base}, too ({2**22 + 1})"
    (service.base / "cgroup.kill").unlink()
    assert refused() == "Linux is older than 5.14"
    os.removexattr(service.base, "user.delegate")
    assert refused() == f"{service.base} is not delegated to the runner"
    service.holds("cpu")
    assert refused() == f"{service.base} lacks the controllers memory and pids"
    service.has(os.getppid())
    assert refused() == "there are no control groups of version 2"


def test_without_preparation_an_attempt_has_no_group(service: Service) -> None:
    with delegated.group(memory=1000, processes=10) as group:
        assert group is None
    assert not list(service.base.glob("experiment-*"))


def test_a_groups_memory_is_that_which_the_kernel_cannot_take_back(tmp_path: Path) -> None:
    group = delegated.Group(tmp_path)
    assert (group.memory(), group.peak(), group.outgrown(), group.starved()) == (0, 0, False, False)
    (tmp_path / "memory.stat").write_text("anon 4096\nfile 1000000\nshmem 8192\n")
    (tmp_path / "memory.peak").write_text("1012288\n")
    assert (group.memory(), group.peak()) == (12288, 1012288)


@pytest.mark.parametrize(("oom", "killed", "which"), [(0, 0, ""), (3, 0, ""), (1, 2, "outgrown"), (0, 1, "starved")])
def test_the_kernel_says_whose_memory_it_was(tmp_path: Path, oom: int, killed: int, which: str) -> None:
    (tmp_path / "memory.events.local").write_text(f"low 0\nhigh 0\nmax 7\noom {oom}\noom_kill {killed}\n")
    group = delegated.Group(tmp_path)
    assert (group.outgrown(), group.starved()) == (which == "outgrown", which == "starved")
