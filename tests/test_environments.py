"""The cache of environments, on a disk, with other processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from runner.sandbox.environments import Environment, Environments

ROOT = Path(__file__).parent.parent

Use = Callable[..., Environment]


def build(venv: Path) -> list[dict[str, object]]:
    (venv / "lib" / "__pycache__").mkdir(parents=True)
    (venv / "lib" / "module.py").write_bytes(b"x" * 100_000)
    return [{"package": {"key": "module"}}]


def never(venv: Path) -> list[dict[str, object]]:
    raise AssertionError("it is there already")


@pytest.fixture
def use(tmp_path: Path) -> Iterator[Use]:
    """As attempts do, each of which ends at the latest when the test does."""
    with ExitStack() as stack:
        yield lambda key, how=build: stack.enter_context(closing(Environments(tmp_path).use(key, how)))


def names(home: Path) -> list[str]:
    return sorted(path.name for path in (home / "environments").iterdir() if path.name != "lock")


def used_at(entry: Environment, when: float) -> None:
    entry.close()
    os.utime(entry.directory / "lock", (when, when))


def test_an_environment_is_built_once_and_shared(tmp_path: Path, use: Use) -> None:
    built = []

    def slowly(venv: Path) -> list[dict[str, object]]:
        built.append(venv)
        time.sleep(0.3)
        return build(venv)

    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda _: use("ab", slowly), range(4)))
    assert len(built) == 1
    assert {entry.directory for entry in got} == {built[0].parent}
    assert got[0].about == [{"package": {"key": "module"}}]


def test_a_build_that_fails_leaves_nothing_and_the_next_one_builds_anew(tmp_path: Path, use: Use) -> None:
    def fail(venv: Path) -> list[dict[str, object]]:
        build(venv)
        raise RuntimeError("no such requirement")

    with pytest.raises(RuntimeError):
        use("ab", fail)
    assert names(tmp_path) == []
    assert use("ab").ready


KILLED = """
import os, signal, sys
from pathlib import Path
from runner.sandbox.environments import Environments
def build(venv):
    venv.mkdir()
    (venv / "half").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
Environments(Path(sys.argv[1])).use("ab", build)
"""


def test_what_a_killed_build_has_left_is_never_used_and_is_removed(tmp_path: Path, use: Use) -> None:
    subprocess.run([sys.executable, "-c", KILLED, tmp_path], env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False)
    assert (tmp_path / "environments" / "ab-1" / "venv" / "half").exists()
    entry = use("ab")
    assert not (entry.content / "half").exists()
    Environments(tmp_path).tidy(age=0, size=0)
    assert names(tmp_path) == [entry.directory.name]


def test_nobody_waits_for_a_dead_builder_nor_removes_the_work_of_a_living_one(tmp_path: Path, use: Use) -> None:
    def look(venv: Path) -> list[dict[str, object]]:
        Environments(tmp_path).shrink(0)
        return build(venv)

    assert use("ab", look).ready


def test_the_shared_files_are_read_only_and_removed_all_the_same(tmp_path: Path, use: Use) -> None:
    entry = use("ab")
    assert (entry.content / "lib" / "module.py").stat().st_mode & 0o222 == 0
    assert (entry.content / "lib").stat().st_mode & 0o222 == 0
    entry.close()
    assert Environments(tmp_path).shrink(0) == 0
    assert names(tmp_path) == []


def put(entry: Environment) -> None:
    (entry.content / "lib").chmod(0o755)
    (entry.content / "lib" / "more.py").write_text("")


def drop(entry: Environment) -> None:
    (entry.content / "lib").chmod(0o755)
    (entry.content / "lib" / "module.py").unlink()


@pytest.mark.parametrize("alter", [put, drop])
def test_an_altered_environment_is_built_anew_while_others_go_on_in_it(tmp_path: Path, use: Use, alter: object) -> None:
    first = use("ab")
    time.sleep(0.02)  # the resolution of a file system's clock
    alter(first)  # type: ignore[operator]
    second = use("ab")
    assert second.directory != first.directory
    assert first.content.exists()
    assert use("ab", never).directory == second.directory
    first.close()
    Environments(tmp_path).tidy(age=0, size=0)
    assert names(tmp_path) == [second.directory.name]


def test_a_file_written_in_place_is_noticed_when_tidying(tmp_path: Path, use: Use) -> None:
    entry = use("ab")
    entry.close()
    time.sleep(0.02)
    (entry.content / "lib" / "module.py").chmod(0o644)
    (entry.content / "lib" / "module.py").write_text("import malice")
    Environments(tmp_path).tidy(age=0, size=0)
    assert names(tmp_path) == []


def test_byte_code_that_python_adds_is_no_alteration(tmp_path: Path, use: Use) -> None:
    entry = use("ab")
    time.sleep(0.02)
    (entry.content / "lib" / "__pycache__").chmod(0o755)
    (entry.content / "lib" / "__pycache__" / "module.opt-1.pyc").write_text("")
    assert entry.intact(thoroughly=True)


def test_what_was_used_longest_ago_goes_first_and_what_is_in_use_stays(tmp_path: Path, use: Use) -> None:
    environments = Environments(tmp_path)
    kept = [use(key) for key in ("aa", "bb", "cc")]
    size = kept[0].bytes
    assert size >= 100_000
    assert environments.used() == 3 * size
    now = time.time()
    used_at(kept[1], now - 10)
    used_at(kept[2], now - 20)
    assert environments.shrink(2 * size) == 2 * size
    assert names(tmp_path) == ["aa-1", "bb-2"]
    assert environments.shrink(0) == size
    assert names(tmp_path) == ["aa-1"]


def test_what_nobody_used_for_long_goes(tmp_path: Path, use: Use) -> None:
    environments = Environments(tmp_path)
    used_at(use("aa"), time.time() - 100)
    use("bb").close()
    environments.tidy(age=50, size=0)
    assert names(tmp_path) == ["bb-2"]


def test_there_is_nothing_in_a_new_home(tmp_path: Path) -> None:
    assert Environments(tmp_path).used() == 0
    assert Environments(tmp_path).shrink(0) == 0


def test_what_an_older_runner_has_noted_otherwise_is_built_anew(tmp_path: Path, use: Use) -> None:
    entry = use("ab")
    ready = entry.directory / "ready.json"
    note = json.loads(ready.read_text())
    ready.write_text(json.dumps({"packages": note.pop("about"), **note}))
    entry.close()
    assert use("ab").directory != entry.directory


@pytest.mark.parametrize("note", ["", "{}", "[]", "\0"])
def test_a_note_that_a_crash_of_the_machine_has_lost_stops_nobody(tmp_path: Path, use: Use, note: str) -> None:
    entry = use("ab")
    (entry.directory / "ready.json").write_text(note)
    entry.close()
    assert Environments(tmp_path).used() >= 100_000
    assert use("ab").directory != entry.directory
    Environments(tmp_path).tidy(age=0, size=0)
    assert names(tmp_path) == ["ab-2"]


def test_a_build_that_failed_since_it_was_listed_stops_nobody(tmp_path: Path, use: Use) -> None:
    (tmp_path / "environments").mkdir()
    (tmp_path / "environments" / "ab-1").symlink_to("gone")  # it is listed, and is not there when it is opened
    assert use("ab").ready
    assert Environments(tmp_path).shrink(10_000_000) >= 100_000
