"""The disk as a contract: who asks for it gets it, and who takes more is to blame."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runner import events
from runner.attempt.disk_use import disk_use
from runner.errors import MachineError
from runner.events import Finished
from runner.machine.disk import Claim, Disk
from runner.machine.hoard import LEFT_FREE
from tests.attempts import carried_out, order
from tests.e2e.harness import until
from tests.servers.disk import small_disk

GIB, MIB = 2**30, 2**20


class Things:
    """A Hoard: so many bytes, of which some are in use."""

    def __init__(self, size: int, in_use: int = 0) -> None:
        self.size, self.in_use, self.asked = size, in_use, 0

    def used(self) -> int:
        return self.size

    def shrink(self, limit: int) -> int:
        self.asked += 1
        self.size = min(self.size, max(limit, self.in_use))
        return self.size


def starts(disk: Disk, need: int, *claims: Claim) -> str:
    """Return why an attempt cannot start, "" when it can."""
    try:
        disk.check(need, claims)
    except MachineError as error:
        return str(error)
    return ""


def test_what_can_be_removed_keeps_no_experiment_from_starting(tmp_path: Path) -> None:
    cache, environments = Things(5 * GIB), Things(3 * GIB)
    disk = Disk(tmp_path, 10 * GIB, {"cache": cache, "environments": environments}, time.monotonic)
    assert starts(disk, GIB) == ""
    assert "is being removed" in starts(disk, 4 * GIB)
    until(lambda: starts(disk, 4 * GIB) == "", "there is room")
    assert (cache.size, environments.size) == (3 * GIB, 3 * GIB), "the first one gives way first"
    until(lambda: starts(disk, 9 * GIB) == "", "there is room")
    assert (cache.size, environments.size) == (0, GIB)


def test_what_is_claimed_or_in_use_is_not_there_for_others(tmp_path: Path) -> None:
    cache = Things(5 * GIB, in_use=4 * GIB)
    disk = Disk(tmp_path, 10 * GIB, {"cache": cache}, time.monotonic)
    claim = Claim(granted=3 * GIB, used=GIB)
    assert starts(disk, 2 * GIB, claim) == ""
    assert "needs 3 GiB of disk, and 2 GiB are free; what was kept" in starts(disk, 3 * GIB, claim)
    until(lambda: starts(disk, 3 * GIB, claim) == "", "there is room")
    for _ in range(3):
        assert starts(disk, 4 * GIB, claim)
    assert starts(disk, 3 * GIB, Claim(granted=0, used=4 * GIB)), "what is used counts, whatever was granted"
    assert disk.allowance("cache", 20 * GIB, [claim]) == 7 * GIB
    assert disk.allowance("of another disk", 20 * GIB, [claim]) == 20 * GIB


def test_what_is_not_free_on_the_file_system_is_not_given(tmp_path: Path) -> None:
    status = os.statvfs(tmp_path)
    there = status.f_bavail * status.f_frsize
    disk = Disk(tmp_path, 10 * there, {}, time.monotonic)
    assert starts(disk, there // 2) == ""
    assert "are free" in starts(disk, there - LEFT_FREE // 2)
    assert starts(disk, there // 2, Claim(granted=there, used=there // 4)), "the other one may yet write"
    assert starts(disk, there // 4, Claim(granted=there, used=there)) == ""


def test_what_grows_beyond_its_bounds_is_cut_back(tmp_path: Path) -> None:
    now = [0.0]
    cache = Things(GIB)
    disk = Disk(tmp_path, 10 * GIB, {"cache": cache}, lambda: now[0])
    cache.size = 8 * GIB
    disk.tend([Claim(5 * GIB, 0)])
    assert cache.asked == 0
    now[0] = 60
    disk.tend([Claim(5 * GIB, 0)])
    until(lambda: cache.size == 5 * GIB, "the cache is smaller")


def test_the_use_of_a_directory_is_without_holes_and_counts_links_once(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "data").write_bytes(b"x" * 100_000)
    os.link(tmp_path / "a" / "b" / "data", tmp_path / "same")
    (tmp_path / "link").symlink_to("/etc")
    with (tmp_path / "hole").open("wb") as file:
        file.truncate(GIB)
    assert 100_000 <= disk_use(tmp_path) < 101_000


# Whole attempts, on a disk that is small


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("small")
    with small_disk(path, "220m"):
        yield path


def attempt(small: Path, root: Path, script: str, **wanted: Any) -> Finished:
    """Make an attempt in the small file system; return how it ended."""
    return carried_out(order(small, root, script, options={"store_patience": 1.0}, resources_needed=wanted))


FILL = """
with open("big", "wb", buffering=0) as file:
    while True:
        file.write(bytes(1 << 20))
"""


def test_a_full_disk_fails_the_one_attempt_that_filled_it(small: Path, tmp_path: Path) -> None:
    assert attempt(small, tmp_path, "print('before')").outcome == "completed"
    (tmp_path / "store" / "output.tar").unlink()

    failed = attempt(small, tmp_path, FILL, hdd="100mb")
    assert failed.outcome == "failed"
    assert "raise resources_needed.hdd" in failed.sentence
    assert failed.status == events.FAILED
    assert (tmp_path / "store" / "output.tar").exists(), "its log is stored"
    assert list((tmp_path / "store" / "metadata").iterdir()), "and its metadata"

    assert attempt(small, tmp_path, "print('after')", hdd="10mb").outcome == "completed"


def test_a_disk_that_others_have_filled_is_not_the_experiments_fault(small: Path, tmp_path: Path) -> None:
    script = "open('small', 'wb').write(bytes(30 << 20))"
    assert attempt(small, tmp_path, script, hdd="40mb").outcome == "completed"
    free = os.statvfs(small).f_bavail * os.statvfs(small).f_frsize
    with (small / "of others").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, free - 20 * MIB)
    given_back = attempt(small, tmp_path, script, hdd="40mb")
    assert given_back.outcome == "misfit"
    assert "the disk is full" in given_back.sentence

    with (small / "of others").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, free - MIB)
    assert "No space left" in attempt(small, tmp_path, script, hdd="40mb").sentence
    (small / "of others").unlink()
    assert attempt(small, tmp_path, script, hdd="40mb").outcome == "completed"


def test_an_experiment_that_takes_more_than_it_asked_for_is_stopped(small: Path, tmp_path: Path) -> None:
    script = "open('big', 'wb').write(bytes(30 << 20)); import time; time.sleep(600)"
    failed = attempt(small, tmp_path, script, hdd="20mb")
    assert failed.outcome == "failed"
    assert "of disk, but asked for" in failed.sentence
