"""Reports wait for their broker in bounded memory and on a bounded disk, in order; the oldest are dropped, counted."""

from __future__ import annotations

from pathlib import Path

import pytest

from runner.reporting.outbox import Outbox
from tests.servers.disk import small_disk


class Broker:
    """Takes messages while it is up."""

    def __init__(self) -> None:
        self.up = True
        self.got: list[bytes] = []

    def send(self, body: bytes) -> bool:
        if self.up:
            self.got.append(body)
        return self.up


def body(number: int) -> bytes:
    return b"%08d" % number + bytes(92)


def pumped(outbox: Outbox) -> None:
    while outbox.pump():
        pass


def test_messages_arrive_in_order_through_memory_and_disk(tmp_path: Path) -> None:
    broker = Broker()
    outbox = Outbox("q", broker.send, tmp_path, memory=1000, segment=2000, limit=100_000)
    broker.up = False
    for number in range(300):
        outbox.put(body(number))
        outbox.pump()
    broker.up = True
    for number in range(300, 310):
        outbox.put(body(number))
    pumped(outbox)
    for number in range(310, 320):
        outbox.put(body(number))
    pumped(outbox)
    assert broker.got == [body(number) for number in range(320)]
    assert outbox.dropped == 0


def test_the_oldest_are_dropped_and_counted_and_both_ends_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broker = Broker()
    broker.up = False
    outbox = Outbox("q", broker.send, tmp_path, memory=1000, segment=2000, limit=10_000)
    for number in range(1000):
        outbox.put(body(number))
    dropped = outbox.dropped
    assert dropped > 800
    broker.up = True
    pumped(outbox)
    assert broker.got == [body(number) for number in range(dropped, 1000)]
    assert caplog.text.count("the oldest first") == 1
    assert f"{dropped} reports of queue q were dropped; it works again" in caplog.text


def test_nothing_is_left_on_disk_whatever_happens_to_the_process(tmp_path: Path) -> None:
    broker = Broker()
    broker.up = False
    outbox = Outbox("q", broker.send, tmp_path, memory=100, segment=2000, limit=10_000)
    for number in range(100):
        outbox.put(body(number))
    assert list(tmp_path.iterdir()) == []
    outbox.close()


def test_without_a_disk_reports_are_dropped_and_nothing_else_happens(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broker = Broker()
    broker.up = False
    outbox = Outbox("q", broker.send, tmp_path / "missing", memory=1000)
    for number in range(100):
        outbox.put(body(number))
    assert outbox.dropped == 90
    assert caplog.text.count("cannot be kept") == 1


def test_a_disk_that_fills_up_costs_what_does_not_fit_and_nothing_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broker = Broker()
    broker.up = False
    with small_disk(tmp_path, "64k"):
        outbox = Outbox("q", broker.send, tmp_path, memory=1000)
        for number in range(1000):
            outbox.put(body(number))
        broker.up = True
        pumped(outbox)
        assert 100 < len(broker.got) < 1000
        assert broker.got == [body(number) for number in range(len(broker.got))]
        assert "cannot be kept: No space left" in caplog.text
        outbox.put(body(0))
        pumped(outbox)
        assert broker.got[-1] == body(0)
        outbox.close()
