"""Bytes that come and go are counted, whatever becomes of them."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from runner.retry import Patience
from runner.storage.base import Location, NotFound, StoreOptions
from runner.storage.metered import Meter
from runner.storage.stores import Stores


def test_bytes_are_counted_by_scheme_also_those_of_tries_that_failed(tmp_path: Path) -> None:
    meter = Meter()
    options = StoreOptions(file_roots=(str(tmp_path),), patience=Patience(0))
    store = Stores(options, sleep=time.sleep, meter=meter).reach(Location("file", "", str(tmp_path), "a"), None)
    with store.create("a") as out:
        out.write(b"x" * 1000)
        out.write(b"y" * 24)
    with pytest.raises(ValueError, match="given up"), store.create("b") as out:
        out.write(b"z" * 100)
        raise ValueError("given up")
    assert store.etag("b") is None
    with store.open("a") as stored:
        assert stored.size == 1024
        while stored.stream.read(300):
            pass
    with pytest.raises(NotFound), store.open("b"):
        pass
    assert meter.taken() == {"file": (1024, 1124)}
    assert meter.taken() == {}, "since the last time"
