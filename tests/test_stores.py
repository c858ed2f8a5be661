"""Whole transfers, and when they begin anew."""

from __future__ import annotations

import time

import pytest

from runner.errors import Unavailable
from runner.retry import Patience
from runner.storage.base import Anew, StoreOptions
from runner.storage.stores import Stores


def transfers(error: Unavailable, patience: float, times: int) -> list[str]:
    """Say how it went with a transfer that takes 0.1 s and fails so often, and raise what is raised."""
    went: list[str] = []

    def transfer() -> list[str]:
        went.append("failed")
        time.sleep(0.1)
        if len(went) <= times:
            raise error
        return [*went[:-1], "done"]

    return Stores(StoreOptions(patience=Patience(patience, first=0.01)), sleep=time.sleep).again(transfer)


def test_what_has_to_begin_anew_does_so_once_however_long_it_took() -> None:
    assert transfers(Anew("the upload is gone"), 0.01, 1) == ["failed", "done"]
    with pytest.raises(Anew):
        transfers(Anew("the upload is gone"), 0.01, 2)


def test_what_takes_longer_than_patience_is_given_up_when_the_store_does_not_answer() -> None:
    with pytest.raises(Unavailable):
        transfers(Unavailable("no answer"), 0.01, 1)


def test_without_patience_there_is_one_try() -> None:
    with pytest.raises(Anew):
        transfers(Anew("the upload is gone"), 0, 1)
