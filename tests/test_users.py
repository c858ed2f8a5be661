"""Trees change hands between the runner and the user that experiments run as, who may be busy in them already."""

from __future__ import annotations

import os
import pwd
from pathlib import Path
from typing import Any

import pytest

from runner.machine.users import User, give, take_back

US = User.named(pwd.getpwuid(os.geteuid()).pw_name)


@pytest.mark.parametrize("change", [lambda root: give(root, US), take_back], ids=["give", "take_back"])
def test_no_link_that_takes_a_directorys_place_leads_out_of_the_tree(
    change: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever owns a directory can put a link in its place: here at the worst moment, just when it changes hands."""
    outside, inner = tmp_path / "outside", tmp_path / "tree" / "inner"
    for directory in (outside, inner):
        directory.mkdir(parents=True)
        (directory / "file").write_text("")
    chown = os.chown

    def chown_and_lose_the_race(path: Any, *words: Any, **more: Any) -> None:
        chown(path, *words, **more)
        if Path(path).name == "inner":
            inner.rename(tmp_path / "away")
            inner.symlink_to(outside)

    before = (outside / "file").stat().st_ctime_ns
    monkeypatch.setattr(os, "chown", chown_and_lose_the_race)
    change(tmp_path / "tree")
    assert inner.is_symlink()
    assert (outside / "file").stat().st_ctime_ns == before


def test_a_directory_changes_hands_after_what_lies_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tree" / "inner").mkdir(parents=True)
    (tmp_path / "tree" / "inner" / "file").write_text("")
    changed = []
    monkeypatch.setattr(os, "chown", lambda path, *_ids, **_how: changed.append(Path(path).name))
    give(tmp_path / "tree", US)
    assert changed == ["file", "inner", "tree"]
