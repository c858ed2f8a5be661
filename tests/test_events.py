"""The contract between the supervisor and an attempt, from both sides."""

from __future__ import annotations

import dataclasses

import pytest

from runner import events
from runner.events import Checkpoint, ContractError, Failing, Finished, Phase, Placed, Started
from runner.order import GpuState, Options, Order

ORDER = Order(
    document={"experiment": {"key": "k"}, "config": {}},
    queue="rmq_q",
    failures=1,
    redeliveries=None,
    allowed=3,
    python="/usr/bin/python3",
    version="3.11.2",
    reported=False,
    options=Options(home="/x", file_roots=("/a", "/b"), env_allow=("NAME",), store_patience=3.5),
    gpus=("GPU-1", "GPU-2"),
)


def test_an_order_comes_out_as_it_went_in() -> None:
    assert Order.from_line(ORDER.to_line()) == ORDER
    assert ORDER.to_line().count(b"\n") == 1


@pytest.mark.parametrize(
    "event",
    [
        Placed("abc-1"),
        Phase("fetch"),
        Started(42),
        Failing(),
        Checkpoint(3),
        Checkpoint(0, "no"),
        Finished("failed", "why\nso"),
    ],
)
def test_an_event_comes_out_as_it_went_in(event: events.Event) -> None:
    assert events.from_line(events.to_line(event)) == event
    assert events.to_line(event).count(b"\n") == 1


def test_the_state_of_gpus_comes_out_as_it_went_in() -> None:
    assert GpuState.from_line(GpuState("GPU 0 is gone").to_line()) == GpuState("GPU 0 is gone")
    for line in (b"", b"[]", b"{}", b'{"fault": "", "more": 1}'):
        with pytest.raises(ContractError):
            GpuState.from_line(line)


def test_a_broken_gpu_is_the_machines_fault_however_the_attempt_ends() -> None:
    assert Finished("stopped", "why", verdict="gpu").fault == "machine"


@pytest.mark.parametrize("line", [b"", b"[]", b"{}", b"nonsense", b'{"event": "placed"}', b'{"event": "unheard of"}'])
def test_what_is_no_event_is_told(line: bytes) -> None:
    with pytest.raises(ContractError):
        events.from_line(line)


@pytest.mark.parametrize("line", [b"", b"[]", b"{}", b'{"options": {"file_roots": [], "env_allow": []}}'])
def test_what_is_no_order_is_told(line: bytes) -> None:
    with pytest.raises(ContractError):
        Order.from_line(line)


def test_exit_statuses_are_the_contract() -> None:
    statuses = {
        verdict: Finished(verdict, "").status for verdict in ("completed", "failed", "misfit", "unavailable", "stopped")
    }
    assert statuses == {"completed": 0, "failed": 1, "misfit": 75, "unavailable": 75, "stopped": 75}


def test_secrets_of_a_request_are_not_shown_by_its_order() -> None:
    order = dataclasses.replace(ORDER, document={"credentials": "s3cret"})
    assert "s3cret" not in repr(order)
