"""Sharing the machine, finding its Pythons, taking stock of it."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

from runner.errors import MachineError
from runner.machine import inventory
from runner.machine.allocate import Resources
from runner.sandbox import interpreters


def test_the_machine_is_taken_stock_of_within_the_operators_limits(tmp_path: Path) -> None:
    stock = inventory.take_stock(tmp_path, max_cores=1, max_mem=1000, max_disk=2000)
    assert stock == Resources(1, 1000, 2000)
    everything = inventory.take_stock(tmp_path, max_cores=10**6, max_mem=2**60, max_disk=2**60)
    assert everything.cpus == inventory.cores()
    assert everything.ram == inventory.memory()
    stock = inventory.take_stock(tmp_path)
    assert 1 <= stock.cpus <= len(os.sched_getaffinity(0))
    assert 0 < stock.ram <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert stock.hdd == pytest.approx(0.85 * shutil.disk_usage(tmp_path).free, rel=0.1)


def fake_python(path: Path, version: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\necho {version}\n")
    path.chmod(0o755)
    return path


def test_the_newest_fitting_interpreter_is_taken(tmp_path: Path) -> None:
    fake_python(tmp_path / "a" / "python3.9", "3.9.18")
    fake_python(tmp_path / "a" / "python3.10", "3.10.2")
    newest = fake_python(tmp_path / "b" / "python3.10", "3.10.13")
    fake_python(tmp_path / "b" / "python2.7", "2.7.18")
    directories = [tmp_path / "a", tmp_path / "missing", tmp_path / "b"]
    assert interpreters.find("3", directories).path == newest
    assert interpreters.find("3.10", directories).path == newest
    assert interpreters.find("3.10.2", directories).version == (3, 10, 2)
    assert [one.version[0] for one in interpreters.there(directories)] == [3, 3, 3]
    with pytest.raises(MachineError, match=r"Python 2\.7 makes no virtual environments"):
        interpreters.find("2.7", directories)


def test_a_version_prefix_is_not_a_text_prefix(tmp_path: Path) -> None:
    fake_python(tmp_path / "python3.11", "3.11.2")
    with pytest.raises(MachineError, match=r"no Python 3\.10 .*3\.11\.2"):
        interpreters.find("3.1", [tmp_path])


def test_the_number_that_many_writers_make_of_3_10_means_it(tmp_path: Path) -> None:
    meant = fake_python(tmp_path / "python3.10", "3.10.2")
    fake_python(tmp_path / "python3.11", "3.11.2")
    assert interpreters.find("3.1", [tmp_path]).path == meant


def test_a_missing_interpreter_is_told_with_what_is_there(tmp_path: Path) -> None:
    fake_python(tmp_path / "python3.9", "3.9.18")
    (tmp_path / "python3.11").write_text("broken")
    with pytest.raises(MachineError, match=r"no Python 3\.11 .*3\.9\.18"):
        interpreters.find("3.11", [tmp_path])


def test_interpreters_are_looked_for_in_path_pyenv_uv_and_where_the_operator_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = {
        "3.6.15": "named/python3.6",
        "3.7.16": "named/bin/python3.7",
        "3.8.18": "named/cpython/bin/python3.8",
        "3.9.18": "path/python3.9",
        "3.10.13": "pyenv/versions/3.10.13/bin/python3.10",
        "3.14.0": "uv/cpython-3.14.0-linux-x86_64-gnu/bin/python3.14",
    }
    for version, place in places.items():
        fake_python(tmp_path / place, version)
    monkeypatch.setenv("PATH", f"{tmp_path}/path:/bin:/usr/bin")
    monkeypatch.setenv("PYENV_ROOT", f"{tmp_path}/pyenv")
    monkeypatch.setenv("UV_PYTHON_INSTALL_DIR", f"{tmp_path}/uv")
    for version, place in places.items():
        assert interpreters.find(version, more=[f"{tmp_path}/named"]).path == tmp_path / place
    with pytest.raises(MachineError, match=r"no Python 3\.6\.15"):
        interpreters.find("3.6.15")


def test_an_interpreter_that_is_not_cpython_is_left_out(tmp_path: Path) -> None:
    fake_python(tmp_path / "python3.10", "")
    with pytest.raises(MachineError, match="none at all"):
        interpreters.find("3.10", [tmp_path])


def test_a_python_without_the_global_lock_has_other_packages_and_is_left_out(tmp_path: Path) -> None:
    asked = "import sys; sys.abiflags = 't'; exec(sys.argv[1])"
    python = fake_python(tmp_path / "python3", "")
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{asked}" "$4"\n')
    assert interpreters.there([tmp_path]) == []


def test_links_that_lead_in_a_circle_are_no_interpreters(tmp_path: Path) -> None:
    (tmp_path / "python3.9").symlink_to("python3.9")
    there = fake_python(tmp_path / "python3.10", "3.10.2")
    assert [one.path for one in interpreters.there([tmp_path])] == [there]


def test_what_cannot_be_looked_into_has_no_interpreters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An image's PYENV_ROOT, say, in the home of root."""
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path / ("x" * 300)))
    monkeypatch.setenv("PATH", str(tmp_path))
    there = fake_python(tmp_path / "python3.10", "3.10.2")
    assert interpreters.find("3.10.2", more=[str(tmp_path / ("y" * 300))]).path == there


def test_who_has_no_home_has_the_interpreters_of_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(_: int) -> None:
        raise KeyError

    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", nobody)
    monkeypatch.setenv("PATH", str(tmp_path))
    there = fake_python(tmp_path / "python3.10", "3.10.2")
    assert interpreters.find("3.10.2").path == there


def test_the_running_interpreter_is_found_where_it_is() -> None:
    version = ".".join(map(str, sys.version_info[:3]))
    there = interpreters.there([Path(sys.base_prefix) / "bin"])
    assert version in map(str, there)
