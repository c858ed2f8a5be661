"""The runner's directories: its own, locked while in use, swept afterwards."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from runner.errors import ConfigError
from runner.place import make_home, placed, sweep, turn


def test_an_attempt_has_directories_of_its_own_and_leaves_none(tmp_path: Path) -> None:
    with placed(tmp_path, "../../key", keep=False) as first, placed(tmp_path, "../../key", keep=False) as second:
        assert first.root != second.root
        assert first.root.parent == second.root.parent == tmp_path / "experiments"
        assert {path.name for path in first.root.iterdir()} == {"workspace", "_runner"}
        deep = first.workspace / "a" / "b"
        deep.mkdir(parents=True)
        deep.parent.chmod(0)
    assert not list((tmp_path / "experiments").iterdir())


def test_an_attempts_directory_is_closed_until_it_is_opened_to_a_group(tmp_path: Path) -> None:
    """With --run-as the way there is open to everybody, and names can be guessed."""
    with placed(tmp_path, "k", keep=False) as place:
        assert place.root.stat().st_mode & 0o777 == 0o700
        place.open_to(os.getegid())
        assert place.root.stat().st_mode & 0o777 == 0o750


def test_a_debugger_finds_everything(tmp_path: Path) -> None:
    with placed(tmp_path, "key", keep=True) as place:
        pass
    assert place.workspace.is_dir()


def test_sweeping_takes_what_is_dead_and_leaves_what_lives(tmp_path: Path) -> None:
    make_home(tmp_path)
    code = "import pathlib, sys, os; from runner.place import placed\n"
    code += "with placed(pathlib.Path(sys.argv[1]), 'dead', keep=False): os._exit(1)"
    root = Path(__file__).parent.parent
    subprocess.run([sys.executable, "-c", code, tmp_path], env={**os.environ, "PYTHONPATH": str(root)}, check=False)
    with placed(tmp_path, "alive", keep=False) as alive:
        assert len(list((tmp_path / "experiments").iterdir())) == 2
        sweep(tmp_path, keep=False)
        assert list((tmp_path / "experiments").iterdir()) == [alive.root]


def test_sweeping_kills_what_a_dead_attempt_left_running(tmp_path: Path) -> None:
    make_home(tmp_path)
    with placed(tmp_path, "key", keep=True) as place:
        pass
    env = {"STUDIOML_EXPERIMENT": place.name, "STUDIOML_HOME": str(tmp_path)}
    left = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], env=env)
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], env={**env, "STUDIOML_HOME": "/x"})
    try:
        sweep(tmp_path, keep=False)
        assert left.wait(10) == -9
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()
    assert not place.root.exists()


def test_attempts_of_one_second_are_told_apart(tmp_path: Path) -> None:
    turns = [turn(tmp_path, second) for second in (7, 7, 7, 8, 8, 7, 9)]
    assert turns == [(7, 0), (7, 1), (7, 2), (8, 0), (8, 1), (8, 2), (9, 0)]


def test_the_root_is_for_its_user_only(tmp_path: Path) -> None:
    home = tmp_path / "home"
    make_home(home)
    assert home.stat().st_mode & 0o777 == 0o700


def test_a_root_that_is_somebody_elses_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(ConfigError, match="--working-dir"):
        make_home(tmp_path / "link")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="--working-dir"):
        make_home(tmp_path / "file")
