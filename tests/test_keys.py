"""Directories of keys: the longest beginning counts, and keys come and go."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from runner.crypto.keys import KeyDirectory
from runner.crypto.signing import read_verifier
from tests.loops import Clock

KEYS = Path(__file__).resolve().parent / "vectors" / "keys"


@pytest.fixture
def clock() -> Clock:
    return Clock(0.0)


def test_the_longest_file_name_that_begins_the_queues_name_counts(tmp_path: Path, clock: Clock) -> None:
    for name in ("rmq_", "rmq_team", "sqs_a"):
        (tmp_path / name).write_text(f"key of {name}")
    keys = KeyDirectory(tmp_path, clock=clock)
    assert keys.text_for("rmq_team_response") == "key of rmq_team"
    assert keys.text_for("rmq_team") == "key of rmq_team"
    assert keys.text_for("rmq_tea") == "key of rmq_"
    assert keys.text_for("sqs_b") is None
    assert keys.text_for("rmq") is None


def test_placeholders_and_hidden_files_are_no_keys(tmp_path: Path, clock: Clock) -> None:
    (tmp_path / "info").write_text("placeholder")
    (tmp_path / ".rmq").write_text("hidden")
    keys = KeyDirectory(tmp_path, clock=clock)
    assert keys.text_for("info_queue") is None
    assert keys.text_for(".rmq") is None


def test_a_directory_that_is_not_there_has_no_keys_until_it_comes(tmp_path: Path, clock: Clock) -> None:
    keys = KeyDirectory(tmp_path / "later", clock=clock)
    assert keys.text_for("rmq_x") is None
    (tmp_path / "later").mkdir()
    (tmp_path / "later" / "rmq").write_text("key")
    clock.now = 10
    assert keys.text_for("rmq_x") == "key"


def test_changes_are_seen_within_ten_seconds_and_not_looked_for_all_the_time(tmp_path: Path, clock: Clock) -> None:
    (tmp_path / "rmq").write_text("one")
    keys = KeyDirectory(tmp_path, clock=clock)
    assert keys.text_for("rmq_x") == "one"
    (tmp_path / "rmq").write_text("two")
    (tmp_path / "rmq_x").write_text("more")
    clock.now = 4
    assert keys.text_for("rmq_x") == "one"
    clock.now = 10
    assert (keys.text_for("rmq_x"), keys.text_for("rmq_y")) == ("more", "two")
    (tmp_path / "rmq_x").unlink()
    (tmp_path / "rmq").unlink()
    clock.now = 20
    assert keys.text_for("rmq_x") is None


def test_a_secret_that_kubernetes_replaces_is_seen(tmp_path: Path, clock: Clock) -> None:
    for version in ("one", "two"):
        (tmp_path / f"..{version}").mkdir()
        (tmp_path / f"..{version}" / "rmq").write_text(version)
    (tmp_path / "..data").symlink_to("..one")
    (tmp_path / "rmq").symlink_to("..data/rmq")
    keys = KeyDirectory(tmp_path, clock=clock)
    assert keys.text_for("rmq_x") == "one"
    (tmp_path / "..new").symlink_to("..two")
    (tmp_path / "..new").replace(tmp_path / "..data")
    clock.now = 10
    assert keys.text_for("rmq_x") == "two"


def test_a_file_that_cannot_be_read_is_told_once_and_no_other_takes_its_place(
    tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "rmq").write_text("key")
    (tmp_path / "rmq_x").mkdir()
    keys = KeyDirectory(tmp_path, clock=clock)
    with caplog.at_level(logging.ERROR):
        for clock.now in (0, 10, 20):
            assert keys.text_for("rmq_x1") is None
            assert keys.text_for("rmq_y") == "key"
        assert len(caplog.records) == 1
        assert f"{tmp_path / 'rmq_x'} cannot be read, so its key is not used: Is a directory" in caplog.text
        (tmp_path / "rmq_x").rmdir()
        (tmp_path / "rmq_x").write_text("good")
        clock.now = 30
        assert keys.text_for("rmq_x1") == "good"


def test_a_keys_comment_may_be_in_any_encoding(tmp_path: Path, clock: Clock) -> None:
    kind, key, _ = (KEYS / "studioml_signing.pub").read_bytes().split()
    (tmp_path / "rmq_").write_bytes(b" ".join([kind, key, "Jürgen Müller".encode("latin-1")]))
    text = KeyDirectory(tmp_path, clock=clock).text_for("rmq_x")
    assert text
    assert read_verifier(text).fingerprint == read_verifier((KEYS / "studioml_signing.pub").read_text()).fingerprint


def test_a_path_that_is_no_directory_is_told(tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    assert KeyDirectory(tmp_path / "file", clock=clock).text_for("rmq") is None
    assert "Not a directory" in caplog.text
