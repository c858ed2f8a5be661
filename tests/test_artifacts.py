"""Artifacts between their directories and a store: what is fetched, and what is stored again."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from runner.artifacts import manifest
from runner.artifacts.artifacts import Artifacts
from runner.artifacts.budget import Budget
from runner.errors import ExperimentError
from runner.message.request import Artifact
from runner.place import Place, placed
from runner.storage.base import Location, StoreOptions
from runner.storage.stores import Stores
from tests.e2e.harness import archive


class Scene:
    """One attempt's artifacts in a store that is a directory."""

    def __init__(self, store: Path, place: Place) -> None:
        self.store, self.place = store, place
        self.stores = Stores(StoreOptions(file_roots=(str(store),)), sleep=time.sleep)
        self.artifacts = Artifacts([], place, Budget(None))

    def fetch(self, label: str, key: str, data: bytes | None = None, *, mutable: bool = True) -> Path:
        """Put something into the store, fetch it, and return its directory."""
        if data is not None:
            (self.store / key).write_bytes(data)
        location = Location("file", "", str(self.store), key)
        artifact = Artifact(label, location, mutable, key.endswith("tar"), "", None, str(location))
        self.artifacts = Artifacts([artifact], self.place, Budget(None))
        self.artifacts.fetch(artifact, self.stores, lambda: None)
        return self.place.label(label)

    def upload(self, *labels: str) -> int:
        return self.artifacts.upload(self.stores, labels or None)


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    (tmp_path / "store").mkdir()
    with placed(tmp_path / "home", "key", keep=False) as place:
        yield Scene(tmp_path / "store", place)


def test_code_has_to_be_there_and_other_mutable_artifacts_need_not_be(scene: Scene) -> None:
    assert not list(scene.fetch("modeldir", "m.tar").iterdir())
    for label, mutable in (("workspace", True), ("data", False)):
        with pytest.raises(ExperimentError, match=f"artifact '{label}' is missing"):
            scene.fetch(label, "m.tar", mutable=mutable)


def test_what_was_fetched_is_stored_again_only_when_something_changed(scene: Scene) -> None:
    directory = scene.fetch("modeldir", "m.tar", archive({"sub/file": b"one", "other": b"two"}))
    assert scene.upload() == 0
    (directory / "sub/file").write_bytes(b"ONE")
    assert scene.upload() == 1
    assert scene.upload() == 0


def test_what_is_stored_is_stored_again_when_the_record_of_it_is_gone(scene: Scene) -> None:
    scene.fetch("modeldir", "m.tar", archive({"file": b"one"}))
    for record in scene.place.scratch.glob("*.stored"):
        record.unlink()
    assert scene.upload() == 1
    assert scene.upload() == 0


def test_a_database_full_of_holes_is_stored_again_when_it_was_written_to(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = scene.fetch("modeldir", "m.tar", archive({"file": b"one"}))
    with (directory / "data.mdb").open("wb") as file:
        file.truncate(2**40)
        assert scene.upload() == 1
        assert (scene.store / "m.tar").stat().st_size < 100_000
        monkeypatch.setattr(manifest, "_TICK", 0)
        assert scene.upload() == 1, "written within a tick of being read"
        assert scene.upload() == 0
        file.seek(2**30)
        file.write(b"data")
    assert scene.upload() == 1


def change_mode(directory: Path) -> None:
    (directory / "file").chmod(0o600)


def change_name(directory: Path) -> None:
    (directory / "file").rename(directory / "renamed")


def change_content(directory: Path) -> None:
    """In place, to the same size, at the same time as far as the clock can tell."""
    before = (directory / "file").stat()
    with (directory / "file").open("r+b") as file:
        file.write(b"X")
    os.utime(directory / "file", ns=(before.st_atime_ns, before.st_mtime_ns))


def remove_one(directory: Path) -> None:
    (directory / "link").unlink()


def add_one(directory: Path) -> None:
    (directory / "zz").write_bytes(b"")


def add_a_directory(directory: Path) -> None:
    (directory / "empty").mkdir()


def change_a_link(directory: Path) -> None:
    (directory / "link").unlink()
    (directory / "link").symlink_to("elsewhere")


CHANGES = [change_mode, change_name, change_content, remove_one, add_one, add_a_directory, change_a_link]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("tick", [0, manifest._TICK])
def test_every_change_is_stored_once(scene: Scene, monkeypatch: pytest.MonkeyPatch, change: object, tick: int) -> None:
    monkeypatch.setattr(manifest, "_TICK", tick)
    directory = scene.fetch("modeldir", "m.tar")
    (directory / "file").write_bytes(b"content")
    (directory / "link").symlink_to("file")
    assert scene.upload() == 1
    assert scene.upload() == 0
    assert callable(change)
    change(directory)
    assert scene.upload() == 1
    assert scene.upload() == 0


def test_files_that_were_only_touched_or_written_anew_with_the_same_content_are_not_stored_again(scene: Scene) -> None:
    directory = scene.fetch("modeldir", "m.tar")
    (directory / "file").write_bytes(b"x" * 1_000_000)
    assert scene.upload() == 1
    os.utime(directory / "file", (1, 1))
    assert scene.upload() == 0
    (directory / "new").write_bytes(b"x" * 1_000_000)
    (directory / "new").rename(directory / "file")
    assert scene.upload() == 0
    (directory / "file").write_bytes(b"y" * 1_000_000)
    assert scene.upload() == 1


def test_an_upload_that_fails_is_tried_again_the_next_time(scene: Scene) -> None:
    directory = scene.fetch("modeldir", "m.tar")
    (directory / "file").write_bytes(b"content")
    (scene.store / "m.tar").mkdir()
    with pytest.raises(ExperimentError):
        scene.upload()
    (scene.store / "m.tar").rmdir()
    assert scene.upload() == 1


def test_an_empty_directory_is_not_stored(scene: Scene) -> None:
    directory = scene.fetch("modeldir", "m.tar")
    (directory / "empty").mkdir()
    assert scene.upload() == 0
    assert not (scene.store / "m.tar").exists()


def test_a_single_file_is_stored_as_it_is(scene: Scene) -> None:
    directory = scene.fetch("weights", "w.bin", b"one")
    assert scene.upload() == 0
    (directory / "w.bin").write_bytes(b"two")
    assert scene.upload() == 1
    assert (scene.store / "w.bin").read_bytes() == b"two"
    (directory / "w.bin").unlink()
    assert scene.upload() == 0


def test_only_the_labels_that_are_asked_for_are_stored_and_nothing_immutable(scene: Scene) -> None:
    (scene.fetch("modeldir", "m.tar") / "file").write_bytes(b"content")
    assert scene.upload("tb") == 0
    assert scene.upload("modeldir") == 1
    (scene.fetch("data", "d.tar", archive({"file": b"one"}), mutable=False) / "file").write_bytes(b"two")
    assert scene.upload() == 0


def test_metadata_files_become_objects_of_their_own(scene: Scene) -> None:
    directory = scene.fetch("_metadata", "meta.tar")
    for name in ("a.json", "b.json"):
        (directory / name).write_bytes(name.encode())
    (directory / "link").symlink_to("a.json")
    (directory / "sub").mkdir()
    assert scene.upload() == 1
    assert {path.name for path in (scene.store / "metadata").iterdir()} == {"a.json", "b.json"}
    assert scene.upload() == 0


def test_a_link_in_the_place_of_a_manifest_leads_nowhere(tmp_path: Path) -> None:
    """A package that is built in a container could have a file of the host written."""
    (tmp_path / "outside").write_text("of the host")
    (tmp_path / "label.new").symlink_to(tmp_path / "outside")
    manifest.Manifest(tmp_path / "label.stored", lambda: iter(())).take()
    assert (tmp_path / "outside").read_text() == "of the host"
