"""The client's own record of an experiment, which anybody who can write to its bucket may have spoilt."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from runner.attempt.record import Record
from runner.message.request_artifacts import Record as Where
from runner.retry import Patience
from runner.storage.base import StoreOptions, locate
from runner.storage.stores import Stores


@pytest.mark.parametrize("data", [b"", b"[]", b"\xff", b"[" * 200_000])
def test_what_is_no_record_is_none_and_is_left_alone(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "record").write_bytes(data)
    stores = Stores(StoreOptions(file_roots=(str(tmp_path),), patience=Patience(0)), sleep=time.sleep)
    record = Record(Where(locate(f"file://{tmp_path}/record"), None), stores)
    assert record.status() == ""
    assert record.update("running") == ""
    assert (tmp_path / "record").read_bytes() == data
