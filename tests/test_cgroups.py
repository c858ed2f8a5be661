"""The limits of containers, as both versions of control groups tell them."""

from __future__ import annotations

from pathlib import Path

import pytest

from runner.machine import cgroups

GIB = 2**30


class Host:
    """A process as /proc describes it, and mounted control groups."""

    def __init__(self, root: Path) -> None:
        self.root, self.process = root, root / "proc"
        self.process.mkdir()

    def mount(self, kind: str, options: str, shown: str = "/") -> Path:
        directory = self.root / options.replace(",", "-")
        directory.mkdir()
        line = f"31 23 0:28 {shown} {directory} rw,relatime shared:9 - {kind} cgroup {options}\n"
        with (self.process / "mountinfo").open("a") as file:
            file.write("22 1 8:1 / / rw - ext4 /dev/root rw\n" + line)
        return directory

    def member(self, *lines: str) -> None:
        (self.process / "cgroup").write_text("".join(f"{line}\n" for line in lines))

    @property
    def limits(self) -> tuple[float | None, int | None, int | None]:
        return cgroups.cores(self.process), cgroups.memory(self.process), cgroups.free_memory(self.process)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def group(directory: Path, **files: object) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (directory / name.replace("__", ".")).write_text(f"{content}\n")


def test_version_2_counts_every_group_above_ones_own(host: Host) -> None:
    mounted = host.mount("cgroup2", "rw")
    host.member("0::/system.slice/runner.service")
    group(mounted / "system.slice", cpu__max="400000 100000", memory__max=4 * GIB, memory__current=3 * GIB)
    group(mounted / "system.slice/runner.service", cpu__max="max 100000", memory__max="max", memory__current=GIB)
    assert host.limits == (4.0, 4 * GIB, GIB)
    group(mounted / "system.slice/runner.service", cpu__max="150000 100000", memory__max=2 * GIB)
    assert host.limits == (1.5, 2 * GIB, GIB)


def test_version_1_has_a_hierarchy_for_each_controller(host: Host) -> None:
    cpu, memory = host.mount("cgroup", "rw,cpu,cpuacct"), host.mount("cgroup", "rw,memory")
    host.member("5:memory:/docker/x", "4:cpu,cpuacct:/docker/x", "1:name=systemd:/", "0::/")
    group(cpu / "docker/x", cpu__cfs_quota_us=250000, cpu__cfs_period_us=100000)
    group(cpu / "docker", cpu__cfs_quota_us=-1, cpu__cfs_period_us=100000)
    group(memory / "docker/x", memory__limit_in_bytes=GIB, memory__usage_in_bytes=GIB // 4)
    assert host.limits == (2.5, GIB, GIB * 3 // 4)


def test_a_container_that_sees_the_hosts_path_has_its_own_group_at_the_root(host: Host) -> None:
    mounted = host.mount("cgroup", "rw,memory", shown="/docker/x")
    host.member("5:memory:/docker/x")
    group(mounted, memory__limit_in_bytes=GIB, memory__usage_in_bytes=0)
    assert host.limits == (None, GIB, GIB)
    host.member("5:memory:/kubepods/y")
    assert host.limits == (None, GIB, GIB)


def test_pages_of_files_are_not_used_up(host: Host) -> None:
    mounted = host.mount("cgroup2", "rw")
    host.member("0::/")
    stat = f"anon 5\ninactive_file {GIB // 2}\nactive_file 7"
    group(mounted, memory__max=GIB, memory__current=GIB, memory__stat=stat)
    assert host.limits[2] == GIB // 2


def test_a_process_that_nothing_limits_has_no_limits(host: Host) -> None:
    assert host.limits == (None, None, None)
    host.mount("cgroup2", "rw")
    host.member("0::/")
    assert host.limits == (None, None, None)
