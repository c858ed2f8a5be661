"""A walk sees all that lies in a tree, and nothing that lies elsewhere."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from runner.place import remove
from runner.walk import walk


def test_a_directory_comes_before_what_is_in_it_and_links_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "secret").touch()
    root = tmp_path / "root"
    (root / "a" / "b").mkdir(parents=True)
    (root / "a" / "b" / "file").touch()
    (root / "a" / "link").symlink_to(tmp_path / "elsewhere")
    seen = [path for path, _ in walk(root)]
    assert sorted(seen) == [str(root / name) for name in (".", "a", "a/b", "a/b/file", "a/link")]
    assert all(seen.index(os.path.dirname(path)) < seen.index(path) for path in seen if path != str(root))  # noqa: PTH120


def test_a_file_is_a_tree_of_one_and_nothing_is_a_tree_of_none(tmp_path: Path) -> None:
    file = tmp_path / "image.sif"
    file.write_bytes(b"sif")
    assert [(path, status.st_size) for path, status in walk(file)] == [(str(file), 3)]
    assert list(walk(tmp_path / "missing")) == []


def test_what_vanishes_meanwhile_is_left_out(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name / "below").mkdir(parents=True)
    seen = []
    for path, _ in walk(tmp_path):
        seen.append(Path(path).name)
        if path in (str(tmp_path / "one"), str(tmp_path / "two")):
            shutil.rmtree(path)
    assert sorted(seen) == sorted([tmp_path.name, "one", "two"])


def test_what_cannot_be_read_is_an_error_unless_it_is_to_be_left_out(tmp_path: Path) -> None:
    deeper = "import os\nfor _ in range(20):\n    os.mkdir('d' * 250)\n    os.chdir('d' * 250)"
    subprocess.run([sys.executable, "-c", deeper], cwd=tmp_path, check=True)  # than any path may be long
    with pytest.raises(OSError, match="too long"):
        list(walk(tmp_path))
    assert 10 < len(list(walk(tmp_path, leaving_out=OSError))) < 21
    remove(tmp_path)
