from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from runner.errors import Unavailable
from runner.storage.base import Denied, NotFound
from runner.storage.files import FileStore
from tests.objects import get, put


def store(directory: Path, *roots: Path) -> FileStore:
    return FileStore(str(directory), [str(root) for root in roots])


@pytest.mark.parametrize("key", ["link", "out/secret", "../../secret", "out/new", "..", "../..", "a/../../../secret"])
def test_nothing_outside_of_the_roots_can_be_read_or_written(tmp_path: Path, key: str) -> None:
    (tmp_path / "secret").write_text("secret")
    bucket = tmp_path / "root" / "bucket"
    (bucket / "a").mkdir(parents=True)
    (bucket / "link").symlink_to(tmp_path / "secret")
    (bucket / "out").symlink_to(tmp_path)
    files = store(bucket, tmp_path / "root")
    with pytest.raises(Denied, match="--file-root"):
        get(files, key)
    with pytest.raises(Denied, match="--file-root"):
        files.etag(key)
    with pytest.raises(Denied, match="--file-root"):
        put(files, key, b"x")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["root", "secret"]
    assert (tmp_path / "secret").read_text() == "secret"


def test_no_file_is_in_reach_unless_the_operator_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(Denied, match="--file-root"):
        get(store(tmp_path), "file")


def test_a_root_whose_name_only_begins_alike_allows_nothing(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root2").mkdir()
    (tmp_path / "root2" / "file").write_text("x")
    with pytest.raises(Denied, match="--file-root"):
        get(store(tmp_path / "root2", tmp_path / "root"), "file")


def test_a_directory_that_becomes_a_link_once_it_was_looked_at_leads_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Experiments may write below the roots, too; with --run-as, as somebody who may not do what the runner may."""
    outside, bucket = tmp_path / "outside", tmp_path / "root" / "bucket"
    for directory in (outside, bucket):
        directory.mkdir(parents=True)
        (directory / "file").write_text(directory.name)
    files, realpath = store(bucket, tmp_path / "root"), os.path.realpath

    def looked_at(path: str) -> str:
        found = realpath(path)
        if not bucket.is_symlink():
            bucket.rename(tmp_path / "away")
            bucket.symlink_to(outside)
        return found

    monkeypatch.setattr(os.path, "realpath", looked_at)
    with pytest.raises(Denied, match="exchanged"):
        get(files, "file")
    bucket.unlink()
    (tmp_path / "away").rename(bucket)
    with pytest.raises(Denied, match="exchanged"):
        put(files, "file", b"evil")
    assert [path.read_text() for path in outside.iterdir()] == ["outside"]


def test_links_within_the_roots_are_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "file").write_bytes(b"content")
    (tmp_path / "root").symlink_to("real")
    (tmp_path / "real" / "link").symlink_to("file")
    assert get(store(tmp_path / "root", tmp_path / "root"), "link") == b"content"


def test_the_root_directory_may_be_a_root(tmp_path: Path) -> None:
    put(store(Path("/"), Path("/")), str(tmp_path / "file")[1:], b"x")
    assert (tmp_path / "file").read_bytes() == b"x"


@pytest.mark.parametrize("key", ["pipe", "directory"])
def test_what_is_no_regular_file_is_no_object_and_nobody_waits_for_it(tmp_path: Path, key: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "directory").mkdir()
    files = store(tmp_path, tmp_path)
    with pytest.raises(Denied, match="not a regular file"):
        get(files, key)
    with pytest.raises(Denied, match="not a regular file"):
        files.etag(key)


def test_an_object_cannot_take_the_place_of_a_directory(tmp_path: Path) -> None:
    (tmp_path / "directory" / "sub").mkdir(parents=True)
    with pytest.raises(Denied, match="directory cannot be used"):
        put(store(tmp_path, tmp_path), "directory", b"x")
    assert [path.name for path in tmp_path.iterdir()] == ["directory"]


def test_a_key_below_a_file_is_not_found(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    files = store(tmp_path, tmp_path)
    assert files.etag("file/below") is None
    with pytest.raises(NotFound):
        get(files, "file/below")


def test_a_name_that_no_file_can_have_is_denied(tmp_path: Path) -> None:
    with pytest.raises(Denied, match="too long"):
        get(store(tmp_path, tmp_path), "k" * 300)


def test_a_file_that_shrinks_while_it_is_read_does_not_look_whole(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 100)
    with store(tmp_path, tmp_path).open("file") as stored:
        assert stored.stream.read(10) == b"x" * 10
        os.truncate(tmp_path / "file", 20)
        with pytest.raises(Unavailable, match="80 bytes too early"):
            while stored.stream.read(50):
                pass


def test_a_file_that_grows_while_it_is_read_ends_at_its_first_size(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 100)
    with store(tmp_path, tmp_path).open("file") as stored:
        with (tmp_path / "file").open("ab") as file:
            file.write(b"y" * 100)
        assert stored.stream.read() == b"x" * 100
        assert stored.size == 100


def test_what_is_written_has_the_permissions_that_the_umask_gives(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        put(store(tmp_path, tmp_path), "new/file", b"x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "new" / "file").stat().st_mode) == 0o640
