"""The start of the built file, with a tiny program in it: where it unpacks to, and whom it trusts."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import build_zipapp

RUNNER = Path(build_zipapp.__file__).parent / "runner"
MACHINE = os.uname().machine


def built(directory: Path, words: str = "unpacked at") -> Path:
    """Build a file as build_zipapp.py does, whose program says where it is."""
    package = directory / words.replace(" ", "-") / "runner"
    for machine in ("x86_64", "aarch64"):
        (package.parent / "native" / machine).mkdir(parents=True)
        (package.parent / "native" / machine / "library").write_text(machine)
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "cli.py").write_text(f"def main():\n    print({words!r}, __file__)\n    return 3\n")
    shutil.copy(RUNNER / "bootstrap.py", package)
    file = directory / f"{package.parent.name}.pyz"
    build_zipapp._pack(package.parent, file)
    return file


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return built(tmp_path)


def start(file: Path, *before: str, python: str = sys.executable, **env: object) -> subprocess.CompletedProcess[str]:
    """Start it as whoever has no more than these variables."""
    given = {"PATH": os.environ["PATH"], **{name: str(value) for name, value in env.items()}}
    return subprocess.run([*before, python, file], env=given, capture_output=True, text=True, check=False)


def place(done: subprocess.CompletedProcess[str]) -> Path:
    """Return where it says that it has been unpacked to."""
    assert (done.returncode, done.stderr) == (3, "")
    return Path(done.stdout.split()[-1]).parent.parent


def test_it_unpacks_once_and_only_what_this_machine_needs(file: Path, tmp_path: Path) -> None:
    root = place(start(file, STUDIO_RUNNER_ROOT=tmp_path / "root"))
    assert root.parent == tmp_path / "root"
    assert [path.name for path in (root / "native").iterdir()] == [MACHINE]
    (root / "runner" / "cli.py").write_text("def main(): return 4")
    assert start(file, STUDIO_RUNNER_ROOT=tmp_path / "root").returncode == 4
    assert sorted(path.name for path in root.parent.iterdir()) == [root.name, "lock"]


def test_versions_live_side_by_side_and_unused_ones_are_removed(file: Path, tmp_path: Path) -> None:
    env = {"STUDIO_RUNNER_ROOT": tmp_path / "root"}
    first = place(start(file, **env))
    second = place(start(built(tmp_path, "another is at"), **env))
    assert first != second
    assert first.exists()
    for unused in (first, second):
        os.utime(unused, (0, time.time() - 31 * 86400))
    place(start(file, **env))
    third = place(start(built(tmp_path, "the third is at"), **env))
    assert {path.name for path in third.parent.iterdir()} == {first.name, third.name, "lock"}


def test_what_else_lies_in_a_directory_that_is_named_stays(file: Path, tmp_path: Path) -> None:
    for name in ("draft", "thesis", f"dataset-{MACHINE}"):
        (tmp_path / "home" / name).mkdir(parents=True)
        (tmp_path / "home" / name / "work").write_text("of years")
        os.utime(tmp_path / "home" / name, (0, time.time() - 400 * 86400))
    place(start(file, STUDIO_RUNNER_ROOT=tmp_path / "home"))
    assert len(list((tmp_path / "home").glob("*/work"))) == 3


def test_not_everybody_may_write_to_it_whatever_the_umask(file: Path, tmp_path: Path) -> None:
    done = start(file, "sh", "-c", 'umask 0; exec "$@"', "sh", STUDIO_RUNNER_ROOT=tmp_path / "root")
    unpacked = place(done)
    assert [path for path in (unpacked, *unpacked.rglob("*")) if path.stat().st_mode & 0o002] == []


def test_a_directory_that_others_could_exchange_comes_last(file: Path, tmp_path: Path) -> None:
    for name, mode in (("open", 0o777), ("sticky", 0o1777)):
        (tmp_path / name).mkdir()
        (tmp_path / name).chmod(mode)
    assert place(start(file, WORKING_DIR=tmp_path / "open", TMPDIR=tmp_path / "sticky")).parent.parent.name == "sticky"


def test_one_that_runs_is_not_removed_however_long_it_does(file: Path, tmp_path: Path) -> None:
    env = {"STUDIO_RUNNER_ROOT": tmp_path / "root"}
    waits = built(tmp_path, "waits at")
    running = place(start(waits, **env))
    (running / "runner" / "cli.py").write_text(
        "def main():\n    print('here', flush=True)\n    input()\n    return 0\n"
    )
    command = [sys.executable, waits]
    with subprocess.Popen(
        command,
        env={"STUDIO_RUNNER_ROOT": str(env["STUDIO_RUNNER_ROOT"])},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout
        process.stdout.readline()
        os.utime(running, (0, time.time() - 31 * 86400))
        place(start(file, **env))
        assert (running / "runner" / "cli.py").exists()
        process.communicate(b"\n")


def test_many_first_starts_at_once(file: Path, tmp_path: Path) -> None:
    command, env = [sys.executable, file], {"STUDIO_RUNNER_ROOT": str(tmp_path / "root")}
    many = [subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) for _ in range(8)]
    assert len({process.communicate()[0] for process in many}) == 1
    assert {process.returncode for process in many} == {3}


def test_the_home_directory_is_used_if_it_is_the_users(file: Path, tmp_path: Path) -> None:
    home, cache = tmp_path / "home", tmp_path / "cache"
    home.mkdir()
    assert place(start(file, HOME=home)).parent == home / ".cache" / "studio-runner"
    assert place(start(file, HOME=home, XDG_CACHE_HOME=cache)).parent == cache / "studio-runner"


def test_it_needs_no_home(file: Path, tmp_path: Path) -> None:
    for env in ({"TMPDIR": tmp_path}, {"WORKING_DIR": tmp_path}, {"TMPDIR": tmp_path, "HOME": "/nonexistent"}):
        assert place(start(file, **env)).parent == tmp_path / f"studio-runner-{os.geteuid()}"


def spoiled_by_a_mode(place: Path) -> None:
    place.mkdir()
    place.chmod(0o777)


def spoiled_by_a_link(place: Path) -> None:
    place.symlink_to(place.parent)


def spoiled_by_a_file(place: Path) -> None:
    place.write_text("")


@pytest.mark.parametrize("spoil", [spoiled_by_a_mode, spoiled_by_a_link, spoiled_by_a_file])
def test_nothing_is_run_from_where_others_may_have_written(
    file: Path, tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    shared, other = tmp_path / "shared", tmp_path / "other"
    shared.mkdir()
    other.mkdir()
    spoil(shared / f"studio-runner-{os.geteuid()}")
    assert place(start(file, WORKING_DIR=shared, TMPDIR=other)).parent.parent == other


def test_closed_streams_are_opened_before_a_file_gets_their_numbers(file: Path, tmp_path: Path) -> None:
    root = place(start(file, STUDIO_RUNNER_ROOT=tmp_path))
    report = tmp_path / "report"
    text = f"""
import os, sys
def main():
    print("said", file=sys.stderr)
    found = [os.readlink(f"/proc/self/fd/{{n}}") + str(os.get_inheritable(n)) + sys.stdin.read() for n in range(3)]
    open({str(report)!r}, "w").write(" ".join(found))
    return 3
"""
    (root / "runner" / "cli.py").write_text(text)
    argv = ["sh", "-c", 'exec "$0" "$1" <&- >&- 2>&-', sys.executable, file]
    done = subprocess.run(argv, env={"STUDIO_RUNNER_ROOT": str(tmp_path)}, check=False)
    assert (done.returncode, report.read_text()) == (3, " ".join(["/dev/nullTrue"] * 3))


def test_an_interrupt_while_the_program_is_imported_ends_it_quietly(file: Path, tmp_path: Path) -> None:
    root = place(start(file, STUDIO_RUNNER_ROOT=tmp_path))
    (root / "runner" / "cli.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nmain = print")
    done = start(file, STUDIO_RUNNER_ROOT=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_where_it_can_be_nowhere_it_says_so(file: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = start(file, STUDIO_RUNNER_ROOT=tmp_path / "file")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"studio-runner: it can unpack itself nowhere ({tmp_path}/file: ")
    assert done.stderr.endswith("): set STUDIO_RUNNER_ROOT to a directory\n")


def isolated(file: Path, setup: str, **env: object) -> subprocess.CompletedProcess[str]:
    """Start it, as a user whom the machine does not know, behind mounts of its own."""
    tools = all(map(shutil.which, ("unshare", "setpriv", "mount")))
    if not tools or subprocess.run(["unshare", "-m", "true"], check=False, capture_output=True).returncode:
        pytest.skip("only root can change what is mounted")
    user = ["setpriv", "--reuid", "54321", "--regid", "54321", "--clear-groups"]
    # That of the tests may be in somebody's home.
    for python in (sys.executable, "/usr/bin/python3"):
        allowed = "import sys; assert sys.version_info >= (3, 10)"
        if not subprocess.run([*user, python, "-c", allowed], check=False, capture_output=True, cwd="/").returncode:
            command = f'{setup} && exec {" ".join(user)} "$@"'
            return start(file, "unshare", "-m", "sh", "-c", command, "sh", python=python, **env)
    pytest.skip("there is no Python that everybody may run")


@pytest.fixture
def open_tmp(tmp_path: Path) -> Path:
    """A directory that everybody can get to."""
    for path in (tmp_path, *tmp_path.parents[:3]):
        if path.stat().st_uid == os.geteuid():
            path.chmod(path.stat().st_mode | 0o011)
    return tmp_path


def test_it_starts_on_a_read_only_machine_without_a_home_as_anybody(file: Path, open_tmp: Path) -> None:
    memory = open_tmp / "memory"
    memory.mkdir()
    setup = f"mount -t tmpfs -o mode=1777 none {memory} && mount -o remount,ro,bind /"
    done = isolated(file, setup, TMPDIR=memory)
    assert place(done).parent == memory / "studio-runner-54321"


def test_a_place_where_programs_may_be_comes_first(file: Path, open_tmp: Path) -> None:
    for name in ("noexec", "plain"):
        (open_tmp / name).mkdir()
    setup = "&&".join(
        f"mount -t tmpfs -o mode=1777,{options} none {open_tmp / name}"
        for name, options in (("noexec", "noexec"), ("plain", "exec"))
    )
    done = isolated(file, setup, WORKING_DIR=open_tmp / "noexec", TMPDIR=open_tmp / "plain")
    assert place(done).parent.parent == open_tmp / "plain"


def test_an_old_python_is_told_which_one_is_needed(file: Path) -> None:
    versions = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    old = [path for minor in (6, 8, 9) for path in versions.glob(f"3.{minor}.*/bin/python3")]
    for python in old:
        done = subprocess.run([python, file], capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert done.stderr.startswith("studio-runner: this is Python 3.")
        assert len(done.stderr.splitlines()) == 1
    if not old:
        pytest.skip("no old Python in pyenv")
