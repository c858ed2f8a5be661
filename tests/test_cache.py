"""The artifact cache: fetched once for all, never wrong, never too large, and nobody's to write to."""

from __future__ import annotations

import hashlib
import mmap
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import pytest

from runner.artifacts.artifacts import Artifacts
from runner.artifacts.budget import Budget
from runner.artifacts.cache import Cache
from runner.artifacts.cache_entries import About, CacheFailure, Entries
from runner.artifacts.trees import tells_writes
from runner.errors import ExperimentError
from runner.message.request import Artifact
from runner.place import placed
from runner.retry import Patience
from runner.storage.base import BearerToken, Credentials, Location, StoreOptions, locate
from runner.storage.stores import Stores
from tests.e2e.harness import archive, until
from tests.servers.disk import small_disk
from tests.servers.http import HttpServer, Served, serving

ROOT = Path(__file__).resolve().parent.parent
MIB = 2**20
DATA = os.urandom(3 * MIB)

Told = list[tuple[str, bool]]
Fetch = Callable[..., dict[str, bytes]]


@pytest.fixture
def server() -> Iterator[HttpServer]:
    with serving() as server:
        server.objects["/a.tar"] = tagged(archive({"x": DATA, "sub/y": b"small"}))
        yield server


def tagged(body: bytes, **others: object) -> Served:
    return Served(body, {"ETag": f'"{hashlib.sha256(body).hexdigest()[:8]}"'}, **others)  # type: ignore[arg-type]


def downloads(server: HttpServer) -> int:
    return sum(each.startswith("GET") for each in server.seen)


class Counted(Entries):
    """Entries whose size is looked at whenever more is to come."""

    def make_room(self, size: int, draft: Path) -> None:
        assert disk(self.root) <= self._limit
        super().make_room(size, draft)


def disk(root: Path) -> int:
    """The bytes of all that is in a cache."""
    return sum(path.lstat().st_blocks * 512 for path in root.glob("*/*/**/*"))


class Machine:
    """A machine with a cache: ``attempt`` is one that fetches an artifact; ``told`` is whether there were hits."""

    def __init__(self, root: Path, limit: int = 1000 * MIB) -> None:
        self.home, self.root, self.limit = root / "home", root / "cache", limit
        self.home.mkdir()
        self.entries.create()
        self.told: list[bool] = []

    @property
    def entries(self) -> Entries:
        return Counted(self.root, self.limit)

    @contextmanager
    def attempt(self, url: str, *, budget: int | None = None, **members: object) -> Iterator[Path]:
        """Fetch, yield the artifact's directory, and end the attempt."""
        artifact = artifact_at(locate(url), **members)
        options = StoreOptions(patience=Patience(total=5, first=0.01), file_roots=(str(self.home.parent),))
        with placed(self.home, "key", keep=False) as place:
            cache = Cache(self.entries, place.scratch, lambda _label, _name, hit: self.told.append(hit))
            artifacts = Artifacts([artifact], place, Budget(budget), cache)
            artifacts.fetch(artifact, Stores(options, sleep=time.sleep), lambda: None)
            yield place.label("data")
            cache.close()

    def fetch(self, url: str, **members: object) -> dict[str, bytes]:
        with self.attempt(url, **members) as directory:
            return files(directory)

    @property
    def disk(self) -> int:
        return disk(self.root)

    def objects(self) -> list[Path]:
        return sorted(path for path in self.root.glob("entries/*/content") if path.is_file())

    def trees(self) -> list[Path]:
        return sorted(path for path in self.root.glob("entries/*/content") if path.is_dir())


def artifact_at(location: Location, **members: object) -> Artifact:
    given = {"mutable": False, "unpack": True, "hash": "", "credentials": None, **members}
    return Artifact("data", location, qualified=str(location), **given)  # type: ignore[arg-type]


def files(directory: Path) -> dict[str, bytes]:
    return {
        path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


WHOLE = {"x": DATA, "sub/y": b"small"}


def test_an_artifact_is_downloaded_once(machine: Machine, server: HttpServer) -> None:
    url = f"http://{server.host}/a.tar"
    for _ in range(3):
        assert machine.fetch(url) == WHOLE
    with machine.attempt(url) as one, machine.attempt(url) as other:  # at once: there is one tree to lend
        assert files(one) == files(other) == WHOLE
    assert downloads(server) == 1
    assert machine.told == [False, True, True, True, True]


def test_a_file_that_is_not_unpacked_is_cached_too(machine: Machine, server: HttpServer) -> None:
    url = f"http://{server.host}/a.tar"
    for _ in range(2):
        assert machine.fetch(url, unpack=False) == {"a.tar": server.objects["/a.tar"].body}
    assert machine.fetch(url) == WHOLE
    assert downloads(server) == 1


def test_a_new_version_is_fetched(machine: Machine, server: HttpServer) -> None:
    url = f"http://{server.host}/a.tar"
    machine.fetch(url)
    server.objects["/a.tar"] = tagged(archive({"x": b"new"}))
    assert machine.fetch(url) == {"x": b"new"}


def test_objects_without_a_version_and_mutable_ones_are_fetched_each_time(machine: Machine, server: HttpServer) -> None:
    url = f"http://{server.host}/a.tar"
    machine.fetch(url, mutable=True)
    server.objects["/a.tar"].headers.clear()
    machine.fetch(url)
    assert machine.fetch(url) == WHOLE
    assert downloads(server) == 3
    assert machine.told == []


def test_a_file_store_is_cached_by_its_files_identity(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(archive({"x": b"1"}))
    assert machine.fetch(f"file://{tmp_path}/a.tar") == machine.fetch(f"file://{tmp_path}/a.tar") == {"x": b"1"}
    assert machine.told == [False, True]


def test_who_may_not_read_an_object_does_not_get_it_from_the_cache(machine: Machine, server: HttpServer) -> None:
    server.objects["/a.tar"] = tagged(server.objects["/a.tar"].body, authorization="Bearer right")
    right: Credentials = BearerToken("right")
    assert machine.fetch(f"http://{server.host}/a.tar", credentials=right) == WHOLE
    for wrong in (None, BearerToken("wrong")):
        with pytest.raises(ExperimentError, match="may not be read"):
            machine.fetch(f"http://{server.host}/a.tar", credentials=wrong)


def test_the_hash_of_a_message_is_kept_to_on_every_way(machine: Machine, server: HttpServer) -> None:
    url, right = f"http://{server.host}/a.tar", hashlib.sha256(server.objects["/a.tar"].body).hexdigest()
    with pytest.raises(ExperimentError, match="changed or damaged"):
        machine.fetch(url, hash="0" * 64)
    assert machine.objects() == [], "what is wrong is not kept"
    for _ in range(2):
        assert machine.fetch(url, hash=right.upper()) == WHOLE
    with pytest.raises(ExperimentError, match="changed or damaged"):
        machine.fetch(url, hash="0" * 64)
    assert machine.fetch(url) == WHOLE


# Nobody writes to the cache

MEDDLING: dict[str, Callable[[Path], object]] = {
    "write": lambda tree: (tree / "x").write_bytes(b"changed"),
    "write in place": lambda tree: _overwrite(tree / "x"),
    "write, and set the times back": lambda tree: _forge(tree / "x"),
    "write through memory": lambda tree: _map(tree / "x"),
    "chmod": lambda tree: (tree / "x").chmod(0o777),
    "remove": lambda tree: (tree / "sub" / "y").unlink(),
    "add": lambda tree: (tree / "sub" / "new").write_bytes(b""),
    "link from elsewhere": lambda tree: os.link(tree / "x", tree.parent / "mine"),
    "replace all": lambda tree: (tree.rename(tree.parent / "away"), tree.symlink_to(tree.parent / "away")),
}


def _overwrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"!")


def _forge(path: Path) -> None:
    status = path.stat()
    _overwrite(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def _map(path: Path) -> None:
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        memory[0] ^= 1


@pytest.mark.parametrize("kind", MEDDLING)
def test_what_an_experiment_does_to_its_files_does_not_change_the_cache(
    machine: Machine, server: HttpServer, kind: str
) -> None:
    url = f"http://{server.host}/a.tar"
    for _ in range(2):  # with a tree that it unpacked itself, and with one that was lent
        with machine.attempt(url) as directory:
            MEDDLING[kind](directory)
        assert machine.trees() == []
        assert machine.fetch(url) == WHOLE
        assert len(machine.trees()) == 1
    assert downloads(server) == 1


def test_a_tree_that_comes_back_untouched_is_the_very_same(machine: Machine, server: HttpServer) -> None:
    inodes = set()
    for _ in range(3):
        with machine.attempt(f"http://{server.host}/a.tar") as directory:
            assert files(directory) == WHOLE
            inodes.add((directory / "x").stat().st_ino)
    assert len(inodes) == 1
    assert tells_writes(machine.home)


def test_a_lent_tree_counts_against_the_budget(machine: Machine, server: HttpServer) -> None:
    url = f"http://{server.host}/a.tar"
    for _ in range(2):
        machine.fetch(url, budget=4 * MIB)
    with pytest.raises(ExperimentError, match="needs more disk"):
        machine.fetch(url, budget=2 * MIB)
    assert machine.fetch(url) == WHOLE


# Damage

DAMAGE: dict[str, Callable[[Path], object]] = {
    "flipped": _map,
    "truncated": lambda path: os.truncate(path, 1000),
    "no archive": lambda path: path.write_bytes(b"!" * path.stat().st_size),
    "gone": lambda path: path.unlink(),
    "nothing known": lambda path: (path.parent / "about.json").write_bytes(b"{"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_object_is_dropped_and_fetched_again(machine: Machine, server: HttpServer, kind: str) -> None:
    url = f"http://{server.host}/a.tar"
    with machine.attempt(url), machine.attempt(url):  # so that the tree is away
        (path,) = machine.objects()
        DAMAGE[kind](path)
        assert machine.fetch(url) == WHOLE
        machine.entries.shrink(machine.limit)
        assert len(machine.objects()) == 1
    assert downloads(server) == 2


def test_after_a_restart_of_the_machine_an_object_is_read_before_it_is_used(
    machine: Machine, server: HttpServer
) -> None:
    url = f"http://{server.host}/a.tar"
    machine.fetch(url)
    for path in machine.root.glob("entries/*/about.json"):  # as if another kernel had stamped the files
        path.write_text(re.sub(r'"evidence": "\w{10}', '"evidence": "0123456789', path.read_text()))
    assert machine.fetch(url) == machine.fetch(url) == WHOLE
    assert machine.told == [False, True, True]
    assert downloads(server) == 1


def test_a_tree_that_was_changed_in_the_cache_is_dropped(machine: Machine, server: HttpServer) -> None:
    url = f"http://{server.host}/a.tar"
    machine.fetch(url)
    (tree,) = machine.trees()
    _map(tree / "x")
    assert machine.fetch(url) == WHOLE
    assert tree not in machine.trees()


def test_a_damaged_archive_in_the_store_is_the_experiments_fault_also_when_it_is_cached(
    machine: Machine, server: HttpServer
) -> None:
    server.objects["/a.tar"] = tagged(b"this is no archive" * 1000)
    machine.fetch(f"http://{server.host}/a.tar", unpack=False)
    for _ in range(2):
        with pytest.raises(ExperimentError, match="is damaged or is none"):
            machine.fetch(f"http://{server.host}/a.tar")
    assert len(machine.objects()) == 1


# Size


def test_the_least_recently_used_goes_first_and_the_size_is_kept_to(tmp_path: Path, server: HttpServer) -> None:
    machine, most = Machine(tmp_path, 10 * MIB), 0
    for name in "bcdbed":
        server.objects[f"/{name}"] = tagged(name.encode() * (2 * MIB))
        with machine.attempt(f"http://{server.host}/{name}", unpack=False):
            most = max(most, machine.disk)
        most = max(most, machine.disk)
        time.sleep(0.01)
    assert most <= machine.limit
    assert machine.entries.used() <= machine.limit
    machine.told.clear()
    server.seen.clear()
    for name in "deb":
        machine.fetch(f"http://{server.host}/{name}", unpack=False)
    assert machine.told[:2] == [True, True]
    assert machine.entries.shrink(3 * MIB) <= 3 * MIB
    assert machine.disk <= 3 * MIB
    assert machine.entries.shrink(0) == 0


@pytest.mark.parametrize("told", [True, False])
def test_an_object_larger_than_the_cache_is_streamed_past_it(tmp_path: Path, server: HttpServer, told: bool) -> None:
    machine = Machine(tmp_path, 80 * MIB)
    server.objects["/small"] = tagged(b"s" * MIB)
    machine.fetch(f"http://{server.host}/small", unpack=False)

    def write(out: BinaryIO) -> None:
        for _ in range(90):
            out.write(b"x" * MIB)
            assert machine.disk <= machine.limit

    server.objects["/big"] = tagged(b"x" * (90 * MIB)) if told else tagged(b"", write=write)
    for _ in range(2):
        with machine.attempt(f"http://{server.host}/big", unpack=False) as directory:
            assert (directory / "big").stat().st_size == 90 * MIB
        server.objects["/big"].headers.update({"Content-Length": str(90 * MIB)} if told else {})
    assert machine.told == [False, False, False]
    assert machine.disk <= machine.limit


def test_a_full_disk_ends_caching_and_nothing_else(tmp_path: Path, server: HttpServer) -> None:
    (tmp_path / "cache").mkdir()
    with small_disk(tmp_path / "cache", "70m"):  # of which it leaves 64 MiB free
        machine = Machine(tmp_path)
        server.objects["/big"] = tagged(b"x" * (16 * MIB))
        assert len(machine.fetch(f"http://{server.host}/big", unpack=False)["big"]) == 16 * MIB
        assert machine.fetch(f"http://{server.host}/a.tar") == WHOLE
        assert machine.fetch(f"http://{server.host}/a.tar") == WHOLE
        assert machine.told == [False, False, True]


# Processes

FETCHING = """
import sys, time, hashlib
from pathlib import Path
from tests.test_cache import Machine
url, root = sys.argv[1:]
machine = Machine.__new__(Machine)
machine.home, machine.root, machine.limit, machine.told = Path(root, "home"), Path(root, "cache"), 10**9, []
with machine.attempt(url, unpack=False) as directory:
    (path,) = directory.iterdir()
    print(hashlib.sha256(path.read_bytes()).hexdigest(), machine.told)
"""


def start(url: str, root: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", FETCHING, url, root], cwd=ROOT, stdout=subprocess.PIPE, text=True)


def slowly(body: bytes, seconds: float) -> Callable[[BinaryIO], None]:
    def write(out: BinaryIO) -> None:
        for start in range(0, len(body), MIB):
            out.write(body[start : start + MIB])
            time.sleep(seconds * MIB / len(body))

    return write


def halting(body: bytes, go_on: threading.Event) -> Callable[[BinaryIO], None]:
    """Send the half of it, and the rest when told to."""

    def write(out: BinaryIO) -> None:
        out.write(body[: len(body) // 2])
        go_on.wait(60)
        out.write(body[len(body) // 2 :])

    return write


def test_one_process_downloads_while_others_wait(machine: Machine, server: HttpServer, tmp_path: Path) -> None:
    body = os.urandom(16 * MIB)
    server.objects["/b"] = tagged(body, write=slowly(body, 1.5))
    server.objects["/b"].headers["Content-Length"] = str(len(body))
    processes = [start(f"http://{server.host}/b", tmp_path) for _ in range(3)]
    outputs = sorted(process.communicate(timeout=60)[0].split(maxsplit=1)[1] for process in processes)
    assert outputs == ["[False]\n", "[True]\n", "[True]\n"]
    assert downloads(server) == 1
    assert list((machine.root / "locks").iterdir()) == []


def test_a_downloader_that_is_killed_leaves_nothing_that_counts(
    machine: Machine, server: HttpServer, tmp_path: Path
) -> None:
    body, go_on = os.urandom(16 * MIB), threading.Event()
    server.objects["/b"] = tagged(body, write=halting(body, go_on))
    server.objects["/b"].headers["Content-Length"] = str(len(body))
    victim = start(f"http://{server.host}/b", tmp_path)
    until(lambda: machine.disk > 2 * MIB, "something is there")
    other = start(f"http://{server.host}/b", tmp_path)
    until(lambda: server.seen.count("HEAD /b") == 2, "the other one waits")
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    assert machine.objects() == []
    go_on.set()
    digest, told = other.communicate(timeout=60)[0].split(maxsplit=1)
    assert (digest, told) == (hashlib.sha256(body).hexdigest(), "[False]\n")
    assert downloads(server) == 2
    machine.entries.shrink(machine.limit)
    assert list((machine.root / "drafts").iterdir()) == []
    assert machine.entries.used() < 40 * MIB


def test_a_wait_for_another_can_be_ended(machine: Machine) -> None:
    def pause(_seconds: float) -> None:
        raise InterruptedByWatch

    with machine.entries.fetching("one"), pytest.raises(InterruptedByWatch):
        with Entries(machine.root, machine.limit, pause=pause).fetching("one"):
            pass


class InterruptedByWatch(Exception):
    pass


def test_a_cache_that_cannot_be_used_is_done_without(machine: Machine, server: HttpServer) -> None:
    subprocess.run(["rm", "-r", machine.root], check=True)
    assert machine.fetch(f"http://{server.host}/a.tar") == WHOLE


def test_reservations_of_processes_that_live_count_and_others_do_not(machine: Machine) -> None:
    small = Entries(machine.root, 10 * MIB)
    with small.draft() as first:
        first.reserve(6 * MIB)
        with small.draft() as second, pytest.raises(CacheFailure, match="no room"):
            second.reserve(6 * MIB)
        assert 6 * MIB <= small.used() < 7 * MIB
        first.content.write_bytes(b"x")
        first.keep("name", About("", 1, ""))
    assert small.used() < MIB
    assert [entry.content.read_bytes() for entry in small.find("name")] == [b"x"]
    with small.draft() as killed:
        killed.reserve(6 * MIB)
        shutil.copytree(killed.content.parent, machine.root / "drafts" / "of somebody dead")
    with small.draft() as third:
        third.reserve(6 * MIB)
    assert list((machine.root / "drafts").iterdir()) == []
